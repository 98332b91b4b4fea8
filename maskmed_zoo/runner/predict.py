"""`predict` and `evaluate` for a run: the weights, the sliding window, and label maps in the input's own geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.data.dataset import ENDING, Case, RawDataset, find_cases, foreground_labels, load_case, open_dataset
from maskmed_zoo.data.instances import components, read_instances
from maskmed_zoo.data.nifti import Geometry
from maskmed_zoo.data.predicted import files_of
from maskmed_zoo.data.preprocess import normalize, resample_image, schemes
from maskmed_zoo.data.sources import Data, open_sources
from maskmed_zoo.device import autocast, autocast_dtype, pick_device
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.aggregate import CaseScores, summarize
from maskmed_zoo.evaluation.metrics.dice import dice_per_label
from maskmed_zoo.evaluation.metrics.objects import Matches, match_objects, summarize_objects
from maskmed_zoo.inference.sliding_window import sliding_window
from maskmed_zoo.inference.stitcher import Instances, Stitcher, follow_labels
from maskmed_zoo.inference.to_image import nearest, probabilities_to_labels
from maskmed_zoo.inference.write import Prediction, check_targets, is_finished, write_prediction
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.schema import class_names
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.run_folder import RunFolder, Which, now


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
        return self.segment(image, geometry).labels

    def segment(self, image: NDArray[np.float32], geometry: Geometry) -> Prediction:
        """Canonical image (c z y x) in its own units to labels and, where the recipe tells them apart, objects.

        Objects are those of the queries and follow the labels; a head that gives logits has their components.
        """
        shape, prepared = image.shape[1:], self.prepare(image, geometry)
        if self.recipe.data.instances is None:
            labels, found = probabilities_to_labels(self.probabilities(prepared), shape), None
        else:
            stitcher = self._stitcher(prepared) if self.model.head.gives == "queries" else None
            labels = probabilities_to_labels(self.probabilities(prepared, stitcher), shape)
            raw = Instances(np.zeros((1, 1, 1), np.int32), (), ()) if stitcher is None else stitcher.result()
            found = follow_labels(replace(raw, ids=nearest(raw.ids, shape)), labels, geometry.spacing)
        return Prediction(labels, found, geometry)

    def prepare(self, image: NDArray[np.float32], geometry: Geometry) -> torch.Tensor:
        """Canonical image (c z y x) in its own units to what the network sees: at its spacing, normalised."""
        data = self.recipe.data
        resampled = resample_image(image, geometry.spacing, data.spacing)
        scheme = schemes(data.normalization, data.channels or ())
        return torch.from_numpy(normalize(resampled, scheme, self.fingerprint))

    def probabilities(self, image: torch.Tensor, stitcher: Stitcher | None = None) -> torch.Tensor:
        """Of a prepared image (c z y x): (k z y x) float32 on the CPU. The stitcher sees the queries of each window."""

        def run(windows: torch.Tensor) -> torch.Tensor:
            with autocast(self.dtype, self.device):
                output: HeadOutput = self.model(windows)
            if stitcher is not None:
                stitcher.see(output.stages[0])
            return output.log_probabilities()

        return sliding_window(
            run,
            image,
            window=self.recipe.data.patch_size,
            num_classes=self.model.num_classes,
            overlap=self.recipe.inference.overlap,
            batch_size=self.recipe.inference.batch_size,
            device=self.device,
        )

    def case(self, case: Case) -> Prediction:
        """Of a case's images."""
        image, _, geometry = load_case(case, None)
        return self.segment(image, geometry)

    def _stitcher(self, image: torch.Tensor) -> Stitcher:
        inference = self.recipe.inference
        window, threshold = self.recipe.data.patch_size, inference.instance_threshold
        return Stitcher(image.shape[1:], window, overlap=inference.overlap, threshold=threshold)


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

    `out` may name the one label map to write if there is one input file. Where the recipe tells objects apart,
    `NAME_instances.nii.gz` and `NAME_instances.json` lie beside it. Cases finished by the same weights are skipped
    unless `overwrite`, which also replaces what other weights made. Raises `DataError` for inputs that cannot be used,
    and then cases before it stay finished; and, before anything is predicted, where an output would be an input, or
    label maps are in the way that other weights made, or something unknown, which is never replaced.
    """
    display = display or Display()
    predictor = Predictor(run, which=which, device=device)
    cases = input_cases(inputs, predictor.recipe.data.channels or ())
    targets = _targets(out, cases)
    has_instances = predictor.recipe.data.instances is not None
    _refuse_inputs(cases, targets, with_instances=has_instances)
    weights = predictor.weights_sha256
    check_targets(targets, weights, with_instances=has_instances, overwrite=overwrite)
    names = class_names(predictor.recipe.data.labels or {})
    written: list[Path] = []
    with display.task("predicting") as progress:
        for index, (case, target) in enumerate(zip(cases, targets, strict=True)):
            if overwrite or not is_finished(target, weights, with_instances=has_instances):
                write_prediction(target, predictor.case(case), names, weights)
                written.append(target)
            progress(index + 1, len(cases))
    if len(written) < len(cases):
        display.say(f"{len(cases) - len(written)} finished before and skipped; --overwrite predicts them again")
    return written


def _targets(out: Path, cases: Sequence[Case]) -> list[Path]:
    """The label map to write for each case: `out` itself for one case, or in the folder `out`."""
    out = out.resolve() if ".." in out.parts else out  # below a folder that is not there yet, no path is seen as it is
    if out.name.endswith(".nii") and not out.is_dir():
        raise DataError(f"{out}: label maps are written as {ENDING}; give {out.name}.gz, or a folder")
    single = out.name.endswith(ENDING) and not out.is_dir()
    if single and len(cases) != 1:
        raise DataError(f"{out}: one output file for {len(cases)} inputs; give a folder")
    if not single and out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give a folder, or a name ending in {ENDING} for one input")
    targets = [out] if single else [out / f"{case.identifier}{ENDING}" for case in cases]
    if len(set(targets)) != len(targets):
        raise DataError(f"{out}: two inputs would be written to the same file; predict them into different folders")
    return targets


def _refuse_inputs(cases: Sequence[Case], targets: Sequence[Path], *, with_instances: bool) -> None:
    """Raise `DataError` if a file to write is one of the images to read, under whatever name."""
    images = {_identity(path) for case in cases for path in case.images}
    for target in targets:
        for path in files_of(target, with_instances=with_instances):
            if path.exists() and _identity(path) in images:
                raise DataError(f"{path}: is an input, a prediction never replaces one; give another output")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def evaluate(
    run: RunFolder,
    *,
    data: Data | None = None,
    device: str | None = None,
    which: Which = "last",
    display: Display | None = None,
) -> dict[str, Any]:
    """Predict and score the run's validation cases; writes `predictions/` and `evaluation.json`, returns the latter.

    `data` is where the data sets lie now, in their order, if they have moved since training. Of each case the labels
    are scored that were looked for in it.
    """
    display = display or Display()
    predictor, manifest = Predictor(run, which=which, device=device), run.manifest()
    channels, merged = predictor.recipe.data.channels or (), predictor.recipe.data.labels or {}
    cases = validation_cases(manifest, data, channels)
    names = class_names(merged)
    targets = [run.predictions / f"{identifier}{ENDING}" for identifier in cases]
    has_instances = predictor.recipe.data.instances is not None
    check_targets(targets, predictor.weights_sha256, with_instances=has_instances, overwrite=True)
    scores: list[CaseScores] = []
    matches: dict[str, dict[str, Matches]] = {}
    with display.task("evaluating") as progress:
        for index, (identifier, (case, dataset)) in enumerate(cases.items()):
            image, reference, geometry = load_case(case, dataset)
            if reference is None:
                raise DataError(f"{dataset.root}: validation case '{identifier}' has no label map")
            prediction = predictor.segment(image, geometry)
            target = run.predictions / f"{identifier}{ENDING}"
            write_prediction(target, prediction, names, predictor.weights_sha256)
            if prediction.instances is not None:
                matches[identifier] = _match(prediction, reference, case, dataset, predictor.recipe)
            reference = dataset.renumbering(merged)[reference]
            dice = dice_per_label(prediction.labels, reference, range(1, len(names)), merged.get("ignore"))
            found = {names[label]: value for label, value in dice.items()}
            scores.append(CaseScores(identifier, found, frozenset(names[1:]) - dataset.annotated(case)))
            progress(index + 1, len(cases))
    facts = {
        "recipe": predictor.recipe.name,
        "dataset": manifest["dataset"],
        "fold": manifest["fold"],
        "seed": manifest["seed"],
        "weights": which,
        "weights_sha256": predictor.weights_sha256,
        "test_time_augmentation": False,
        "overlap": predictor.recipe.inference.overlap,
        "date": now(),
    }
    result = facts | summarize(scores, names[1:])
    if matches:
        result["instances"] = summarize_objects(matches, names[1:])
    run.write_json(run.evaluation_file, result)
    return result


def _match(
    prediction: Prediction, reference: NDArray[np.int16], case: Case, dataset: RawDataset, recipe: Recipe
) -> dict[str, Matches]:
    """Objects predicted and those of the reference, a label map in the data set's own values, by label looked for."""
    if prediction.instances is None:
        return {}
    labels = recipe.data.labels or {}
    if recipe.data.instances == "map":
        numbers = read_instances(case, dataset, reference, prediction.geometry)
    else:
        numbers = components(reference, list(foreground_labels(dataset.labels).values()))
    wanted = {name: value for name, value in foreground_labels(labels).items() if name in dataset.annotated(case)}
    ours, theirs = (prediction.labels, prediction.instances.ids), (dataset.renumbering(labels)[reference], numbers)
    return match_objects(ours, theirs, wanted, labels.get("ignore"))


def validation_cases(
    manifest: dict[str, Any], data: Data | None, channels: Sequence[str]
) -> dict[str, tuple[Case, RawDataset]]:
    """The run's validation cases by the names they have in it; raises `DataError` unless they are what they were."""
    records = [record for record in manifest["data"] if record["cases"] == "fold"]
    if data is None:
        datasets = [open_dataset(record["path"]) for record in records]
    else:
        datasets = [source.dataset for source in open_sources(data) if not source.is_whole]
    if len(datasets) != len(records):
        known = ", ".join(record["name"] for record in records)
        raise DataError(f"{len(datasets)} data sets to validate on; give those of the run, in their order: {known}")
    cases: dict[str, tuple[Case, RawDataset]] = {}
    for record, dataset in zip(records, datasets, strict=True):
        if dataset.labels != record["labels"] or dataset.channels != tuple(channels):
            raise DataError(
                f"{dataset.root / 'dataset.json'}: channels {list(dataset.channels)} and labels {dataset.labels}, in "
                f"training {list(channels)} and {record['labels']}; give the run's data set as it was"
            )
        cases |= {record["prefix"] + case.identifier: (case, dataset) for case in dataset.cases}
    for name in manifest["validation"]:
        if name not in cases:
            roots = ", ".join(str(dataset.root) for dataset in datasets)
            raise DataError(f"{roots}: validation case '{name}' of the run is not there; give its data set")
    return {name: cases[name] for name in manifest["validation"]}


def input_cases(inputs: Sequence[Path], channels: Sequence[str]) -> list[Case]:
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
