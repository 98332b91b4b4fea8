"""`predict` and `evaluate` for a run: the weights, the sliding window, and label maps in the input's own geometry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskmed_zoo.build import model_of
from maskmed_zoo.data.binding import bind
from maskmed_zoo.data.dataset import ENDING, Case, find_cases, load_case, open_dataset
from maskmed_zoo.data.nifti import Geometry, write_labels
from maskmed_zoo.data.preprocess import normalize, resample_image, schemes
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.aggregate import CaseScores, summarize
from maskmed_zoo.evaluation.dice import dice_per_label
from maskmed_zoo.inference.resample import probabilities_to_labels
from maskmed_zoo.inference.sliding_window import sliding_window
from maskmed_zoo.recipe.schema import class_names
from maskmed_zoo.runner.device import autocast, autocast_dtype, pick_device
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.run_folder import RunFolder, Which, make_folder, now


class Predictor:
    """A run's network, ready to segment volumes.

    Raises `CheckpointError` if the run or its weights are missing, broken or of another recipe.
    """

    def __init__(self, run: RunFolder, *, which: Which = "last", device: str | None = None) -> None:
        self.recipe = run.recipe()
        self.device = pick_device(device)
        self.model = model_of(self.recipe)
        self.weights_sha256 = run.load_weights(self.model, which, self.recipe)
        self.model.to(self.device).eval()
        self.fingerprint = run.fingerprint()
        self.dtype = autocast_dtype(self.recipe.train.amp, self.device)

    def labels(self, image: NDArray[np.float32], geometry: Geometry) -> NDArray[Any]:
        """Canonical image (c z y x) in its own units to a label map (z y x) on the same voxels."""
        data = self.recipe.data
        resampled = resample_image(image, geometry.spacing, data.spacing)
        normal = normalize(resampled, schemes(data.normalization, data.channels or ()), self.fingerprint)
        probabilities = sliding_window(
            self._predict,
            torch.from_numpy(normal),
            window=data.patch_size,
            num_classes=self.model.num_classes,
            overlap=self.recipe.inference.overlap,
            batch_size=self.recipe.inference.batch_size,
            device=self.device,
        )
        return probabilities_to_labels(probabilities, image.shape[1:])

    def case(self, case: Case) -> tuple[NDArray[Any], Geometry]:
        """Label map (z y x) of a case's images, and the geometry to write it with."""
        image, _, geometry = load_case(case, None)
        return self.labels(image, geometry), geometry

    def _predict(self, windows: torch.Tensor) -> torch.Tensor:
        with autocast(self.dtype, self.device):
            return self.model.predict(windows)


def predict(
    run: RunFolder,
    inputs: Sequence[Path],
    out: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    which: Which = "last",
    display: Display | None = None,
) -> list[Path]:
    """Segment image files or folders of them; returns the label maps written, `out/NAME.nii.gz` each.

    `out` may name the one label map to write if there is one input file. Finished cases are skipped unless
    `overwrite`. Raises `DataError` for inputs that cannot be used; cases before it stay finished.
    """
    display = display or Display()
    predictor = Predictor(run, which=which, device=device)
    cases = _inputs(inputs, predictor.recipe.data.channels or ())
    single = out.name.endswith(ENDING)
    if single and len(cases) != 1:
        raise DataError(f"{out}: one output file for {len(cases)} inputs; give a folder")
    targets = [out] if single else [out / f"{case.identifier}{ENDING}" for case in cases]
    if not single and out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give a folder, or a name ending in {ENDING} for one input")
    if len(set(targets)) != len(targets):
        raise DataError(f"{out}: two inputs would be written to the same file; predict them into different folders")
    written: list[Path] = []
    with display.task("predicting") as progress:
        for index, (case, target) in enumerate(zip(cases, targets, strict=True)):
            if overwrite or not target.exists():
                labels, geometry = predictor.case(case)
                make_folder(target.parent)
                write_labels(target, labels, geometry)
                written.append(target)
            progress(index + 1, len(cases))
    if len(written) < len(cases):
        display.say(f"{len(cases) - len(written)} finished before and skipped; --overwrite predicts them again")
    return written


def evaluate(
    run: RunFolder,
    *,
    data: Path | None = None,
    device: str | None = None,
    which: Which = "last",
    display: Display | None = None,
) -> dict[str, Any]:
    """Predict and score the run's validation cases; writes `predictions/` and `evaluation.json`, returns the latter.

    `data` is where the data set lies now, if it has moved since training.
    """
    display = display or Display()
    predictor, manifest = Predictor(run, which=which, device=device), run.manifest()
    dataset = open_dataset(data or Path(manifest["data"]))
    bind(predictor.recipe, dataset)
    cases = {case.identifier: case for case in dataset.cases}
    names = class_names(dataset.labels)
    make_folder(run.predictions)
    scores: list[CaseScores] = []
    with display.task("evaluating") as progress:
        for index, identifier in enumerate(manifest["validation"]):
            if identifier not in cases:
                raise DataError(
                    f"{dataset.root}: validation case '{identifier}' of the run is not there; give its data set"
                )
            image, reference, geometry = load_case(cases[identifier], dataset)
            if reference is None:
                raise DataError(f"{dataset.root}: validation case '{identifier}' has no label map")
            labels = predictor.labels(image, geometry)
            write_labels(run.predictions / f"{identifier}{ENDING}", labels, geometry)
            dice = dice_per_label(labels, reference, range(1, len(names)), dataset.ignore_label)
            scores.append(CaseScores(identifier, {names[label]: value for label, value in dice.items()}))
            progress(index + 1, len(manifest["validation"]))
    facts = {
        "recipe": predictor.recipe.name,
        "dataset": dataset.name,
        "fold": manifest["fold"],
        "seed": manifest["seed"],
        "weights": which,
        "weights_sha256": predictor.weights_sha256,
        "test_time_augmentation": False,
        "overlap": predictor.recipe.inference.overlap,
        "date": now(),
    }
    result = facts | summarize(scores, names[1:])
    run.write_json(run.evaluation_file, result)
    return result


def _inputs(inputs: Sequence[Path], channels: Sequence[str]) -> list[Case]:
    """Cases in folders, and cases made of the files given: `NAME_0000, NAME_0001, …`, or plain names."""
    cases: list[Case] = []
    files: list[tuple[Path, str, int]] = []
    for path in inputs:
        if path.is_dir():
            cases += find_cases(path, len(channels))
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        elif not path.name.endswith((".nii", ENDING)):
            raise DataError(f"{path}: expected a .nii or .nii.gz file, or a folder of them; convert it to NIfTI")
        else:
            files.append((path, *_channel_of(path)))
    firsts = {name for _, name, channel in files if channel == 0}
    found: dict[str, dict[int, Path]] = {}
    for path, stem, number in files:
        # With one channel, a number without a partner 0000 is part of the name, as in visit_2020.
        name, channel = (stem, number) if number >= 0 and (len(channels) > 1 or stem in firsts) else (_plain(path), 0)
        known = found.setdefault(name, {})
        if channel in known:
            raise DataError(f"{path}: '{name}' is there twice, also as {known[channel]}; predict them one by one")
        known[channel] = path
    for name, known in found.items():
        if sorted(known) != list(range(len(channels))):
            raise DataError(
                f"{next(iter(known.values())).parent}: case '{name}' has {len(known)} channel files "
                f"({', '.join(f'_{c:04d}' for c in sorted(known))}), the model takes {len(channels)} "
                f"({', '.join(channels)}), numbered from _0000"
            )
    return cases + [Case(name, tuple(known[c] for c in sorted(known)), None) for name, known in found.items()]


def _plain(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _channel_of(path: Path) -> tuple[str, int]:
    """Name and channel of `NAME_0001.nii.gz`; channel -1 where there is no number."""
    stem, _, number = _plain(path).rpartition("_")
    return (stem, int(number)) if stem and len(number) == 4 and number.isdecimal() else (_plain(path), -1)
