"""A run on disk: `recipe.yaml, manifest.json, metrics.csv, weights_*.safetensors, state_last.pt, evaluation.json,
predictions/`. Files are replaced as a whole, so a killed run leaves the last complete one.

Exported weights are a folder of another shape that predicts too: `card.json, recipe.yaml, weights.safetensors`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats
from maskmed_zoo.errors import CheckpointError, DataError, nearest, printable
from maskmed_zoo.files import is_file, make_folder, sha256_of, write_atomically
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe import Recipe, dump_recipe, load_recipe
from maskmed_zoo.recipe.network import network_difference, network_section
from maskmed_zoo.weights.card import CARD, WEIGHTS, check_exported
from maskmed_zoo.weights.files import check_tensors, read_safetensors

Which = Literal["best", "last"]


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run (one recipe, one data set, one fold)."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def state_file(self) -> Path:
        return self.path / "state_last.pt"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.json"

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
            raise CheckpointError(f"{self.path}: no run here (no recipe.yaml); give the --out folder of 'train'")
        return load_recipe(self.recipe_file, unread=() if with_loss else ("loss",))

    def manifest(self) -> dict[str, Any]:
        """What the run was made from; raises `CheckpointError` if it is missing or broken."""
        if self.is_exported:
            raise CheckpointError(f"{self.path}: exported weights, which predict; this needs the run that made them")
        try:
            manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
            known = {"data", "dataset", "fold", "seed", "validation", "fingerprint"} <= manifest.keys()
            lists = [manifest[key] for key in ("data", "validation", "fingerprint")] if known else []
            is_listed = all(isinstance(each, list) for each in lists)
            if not known or not is_listed or not all(isinstance(record, dict) for record in (*lists[0], *lists[2])):
                raise ValueError("keys are missing, or of an earlier version")
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.manifest_file}: cannot be read ({error}); train the run again") from error
        return manifest

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

    def write_recipe(self, recipe: Recipe) -> None:
        make_folder(self.path)
        write_atomically(self.recipe_file, lambda p: p.write_text(dump_recipe(recipe), encoding="utf-8"))

    def save_weights(self, model: SegmentationModel, which: Which, recipe: Recipe) -> None:
        """Write the weights of a model of this recipe."""
        save_model(self.weights_file(which), model, recipe)

    def load_weights(self, model: SegmentationModel, which: Which, recipe: Recipe) -> str:
        """Load strictly into `model` and return the file's sha256; `CheckpointError` for another recipe's weights."""
        path = self.weights_file(which)
        if not is_file(path):
            raise CheckpointError(f"{path}: no weights here; the run has not finished an epoch yet")
        state = read_safetensors(path)
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
        return sha256_of(path)


def save_model(path: Path, model: SegmentationModel, recipe: Recipe) -> None:
    """Weights with the class names and what identifies the network in the header; raises `OutputError`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    section = json.dumps(network_section(recipe))
    header = {"network": section, "class_names": json.dumps(model.class_names), "recipe": recipe.name}
    write_atomically(path, lambda p: save_file(tensors, p, header))


def check_state(model: SegmentationModel, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Raise `CheckpointError` unless names and shapes are those of the model."""
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in [*own, *given]:
        if own.get(name) != given.get(name):
            hint = nearest(name, own) if name not in own else ""
            raise CheckpointError(
                f"{path}: does not fit the recipe's model: '{name}' is {given.get(name, 'missing')} in the file and "
                f"{own.get(name, 'missing')} in the model{hint}"
            )
