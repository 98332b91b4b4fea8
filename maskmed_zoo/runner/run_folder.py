"""A run on disk: `recipe.yaml, manifest.json, metrics.csv, steps.jsonl, progress.png, warnings.json,
weights_*.safetensors, state_last.pt, state_previous.pt, evaluation.json, evaluation.csv, evaluation.png, predictions/`.
Files are replaced as a whole, but for `steps.jsonl`, which grows, so a killed run leaves the last complete one.

Exported weights are a folder of another shape that predicts too: `card.json, recipe.yaml, weights.safetensors`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats
from maskmed_zoo.errors import CheckpointError, DataError, nearest, printable
from maskmed_zoo.files import is_file, make_folder, sha256_of, usable, write_atomically, write_json, write_text
from maskmed_zoo.lock import NoLocksError, locked, wait_for_the_dead, worker
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe import Recipe, dump_recipe, load_recipe
from maskmed_zoo.recipe.network import network_difference, network_section
from maskmed_zoo.runner.manifest_file import EarlyEnd, read_manifest
from maskmed_zoo.runner.study_folder import folds_in
from maskmed_zoo.weights.card import CARD, RECIPE, WEIGHTS, check_exported, read_card
from maskmed_zoo.weights.files import State, check_tensors, read_safetensors

Which = Literal["best", "last"]
LOCK = ".lock"
"""In the folder, while somebody trains there."""
EPOCHS, LONGEST_NUMBER = "epochs", 10
"""Key in the header of weights: how many whole epochs are behind them; and digits that a number there may have."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run (one recipe, one data set, one fold)."""

    path: Path

    def __post_init__(self) -> None:
        """Raises `CheckpointError` for a path at which nothing can be."""
        usable(self.path, CheckpointError)

    @property
    def recipe_file(self) -> Path:
        return self.path / RECIPE

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def steps_file(self) -> Path:
        return self.path / "steps.jsonl"

    @property
    def progress_picture(self) -> Path:
        return self.path / "progress.png"

    @property
    def warnings_file(self) -> Path:
        """There once there is a warning."""
        return self.path / "warnings.json"

    @property
    def state_file(self) -> Path:
        return self.path / "state_last.pt"

    @property
    def previous_state_file(self) -> Path:
        """The state before the last."""
        return self.path / "state_previous.pt"

    def has_state(self) -> bool:
        """Whether there is something to continue from, damaged or not."""
        return self.state_file.exists() or self.previous_state_file.exists()

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def trained_files(self) -> tuple[Path, ...]:
        """What nobody writes but the process that trains."""
        weights = (self.weights_file("last"), self.weights_file("best"))
        seen = (self.metrics_file, self.progress_picture, self.warnings_file)
        return (*weights, *seen, self.state_file, self.manifest_file)

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def is_exported(self) -> bool:
        """Whether these are exported weights: one set of them, and no training run to continue."""
        return is_file(self.path / CARD)

    def weights_file(self, which: Which) -> Path:
        if self.is_exported:
            return self.path / WEIGHTS
        return self.path / f"weights_{which}.safetensors"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return is_file(self.recipe_file)

    def recipe(self, *, with_loss: bool = True) -> Recipe:
        """The resolved recipe; raises `CheckpointError` where there is no run.

        Without its loss, which is then kept as it stands, nothing of training has to be imported.
        """
        if not self.exists():
            folds = [*folds_in(self.path).values()]
            raise CheckpointError(
                f"{self.path}: a study of {len(folds)} runs; give one of them, such as {folds[0]}"
                if folds
                else f"{self.path}: no run here (no recipe.yaml); give the --out folder of 'train'"
            )
        return load_recipe(self.recipe_file, unread=() if with_loss else ("loss",))

    def manifest(self) -> dict[str, Any]:
        """What the run was made from; raises `CheckpointError` if it is missing or broken."""
        if self.is_exported:
            raise CheckpointError(f"{self.path}: exported weights, which predict; this needs the run that made them")
        return read_manifest(self.manifest_file)

    def early_end(self) -> EarlyEnd | None:
        """How `train.patience` ended the run; None where it did not, or the manifest cannot be read."""
        try:
            found = read_manifest(self.manifest_file).get("ended_early")
        except CheckpointError:
            return None
        return None if found is None else EarlyEnd.model_validate(found)

    def note_early_end(self, end: EarlyEnd) -> None:
        """Write it into the manifest, once; `OutputError`."""
        if self.early_end() != end:
            write_json(self.manifest_file, self.manifest() | {"ended_early": end.model_dump()})

    def whole(self, planned: int) -> int:
        """After how many epochs the run of so many is finished: after fewer where it has ended early."""
        end = self.early_end()
        return end.epoch if end is not None and end.of == planned else planned

    @property
    def preprocessing(self) -> int:
        """How images were prepared for its training, see `data.preprocess`; from the manifest or the card."""
        facts = read_card(self.path / CARD)[0] if self.is_exported else self.manifest()
        number = facts.get("preprocessing")
        return number if isinstance(number, int) else 1

    def fingerprint(self) -> Fingerprint:
        """Intensity statistics of the training cases, from the manifest or the card, whose files are checked."""
        stats = check_exported(self.path).get("fingerprint") if self.is_exported else self.manifest()["fingerprint"]
        try:
            found = tuple(IntensityStats.from_dict(channel) for channel in stats or ())
        except (DataError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: its fingerprint cannot be read ({error}); train it again") from error
        if not all(math.isfinite(number) for channel in found for number in channel.to_dict().values()):
            raise CheckpointError(f"{self.path}: its fingerprint holds NaN or infinity; train it again")
        return found

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Generator[None]:
        """Be the only process that trains here; `CheckpointError` names another one, `say` is told of missing locks."""
        is_new = not self.path.exists()
        make_folder(self.path)
        try:
            with ExitStack() as stack:
                try:
                    wait_for_the_dead(self.path / LOCK)
                    lock = stack.enter_context(locked(self.path / LOCK, keep=False))
                except NoLocksError as error:
                    say(f"{error}; until then, let no other process train in {self.path}")
                else:
                    if lock is None:
                        who = worker(self.path / LOCK)
                        raise CheckpointError(
                            f"{self.path}: {who} is training here; wait for it, or give another --out"
                        )
                yield
        finally:
            if is_new:
                with suppress(OSError):
                    self.path.rmdir()  # where nothing came of it

    def write_recipe(self, recipe: Recipe) -> None:
        make_folder(self.path)
        write_text(self.recipe_file, dump_recipe(recipe))

    def save_weights(
        self, model: SegmentationModel, which: Which, recipe: Recipe, *, epochs: int | None = None
    ) -> None:
        """Write the weights of a model of this recipe, trained for so many whole epochs."""
        save_model(self.weights_file(which), model, recipe, {} if epochs is None else {EPOCHS: str(epochs)})

    def load_weights(self, model: SegmentationModel, which: Which, recipe: Recipe) -> str:
        """Load strictly into `model` and return the file's sha256; `CheckpointError` for another recipe's weights."""
        path = self.weights_file(which)
        if not is_file(path):
            raise CheckpointError(f"{path}: {self._why_missing(which)}")
        state, sha256 = _read_weights(path)
        difference = network_difference(state.header.get("network", ""), recipe, self.recipe_file)
        if difference:
            named = state.header.get("recipe", "unknown")
            raise CheckpointError(
                f"{path}: weights of another recipe ('{printable(named)}') than {self.recipe_file}: "
                f"{printable(difference)}; use the recipe they were trained with"
            )
        check_state(model, state.tensors, path)
        check_tensors(state.tensors, path)
        model.load_state_dict(state.tensors)
        return sha256

    def epochs_behind(self, which: Which, sha256: str) -> int | None:
        """Whole epochs behind the weights of this checksum; None where they do not say, or are others by now."""
        path = self.weights_file(which)
        try:
            with safe_open(
                path, framework="pt"
            ) as file:  # the header alone: these weights were read and checked before
                text = (file.metadata() or {}).get(EPOCHS, "")
            is_same = sha256_of(path) == sha256
        except (SafetensorError, OSError):
            return None
        return int(text) if is_same and text.isdecimal() and len(text) < LONGEST_NUMBER else None

    def _why_missing(self, which: Which) -> str:
        if (self.path / WEIGHTS).is_file():
            return f"no run, and no {CARD} beside {WEIGHTS}: an exported folder that is not whole; get it again"
        if which == "best" and self.weights_file("last").is_file():
            return "is missing, though the run has its last weights; copy it back, or take the last ones"
        if self.has_state() and self.metrics_file.is_file():
            return f"is missing, though {self.state_file.name} is there; resume the training, which writes it again"
        if self.metrics_file.is_file() or self.evaluation_file.is_file():
            return "is missing, though the run has finished epochs; copy it back, or train the run again"
        return "no weights here; the run has not finished an epoch yet"


def _read_weights(path: Path) -> tuple[State, str]:
    """Content and sha256 of one file; a training run may put a new one in its place meanwhile."""
    try:
        while True:
            before = _identity(path)
            state, sha256 = read_safetensors(path), sha256_of(path)
            if before == _identity(path):
                return state, sha256
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); train or copy it again") from error


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def save_model(path: Path, model: SegmentationModel, recipe: Recipe, facts: Mapping[str, str] | None = None) -> None:
    """Weights with the class names, what identifies the network, and further `facts` in the header; `OutputError`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    section = json.dumps(network_section(recipe))
    header = {"network": section, "class_names": json.dumps(model.class_names), "recipe": recipe.name}
    header |= facts or {}
    write_atomically(path, lambda p: save_file(tensors, p, header))


def check_state(model: SegmentationModel, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Raise `CheckpointError` unless names, shapes and kinds of numbers are those of the model, and all are finite."""
    state = model.state_dict()
    own = {name: tuple(t.shape) for name, t in state.items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in [*own, *given]:
        if own.get(name) != given.get(name):
            hint = nearest(name, own) if name not in own else ""
            raise CheckpointError(
                f"{path}: does not fit the recipe's model: '{name}' is {given.get(name, 'missing')} in the file and "
                f"{own.get(name, 'missing')} in the model{hint}"
            )
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_floating_point() != state[name].is_floating_point():
            raise CheckpointError(f"{path}: '{name}' is {tensor.dtype}, expected {state[name].dtype}; train it again")
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CheckpointError(f"{path}: '{name}' holds NaN or infinity; these weights cannot be used")
