"""`train`: from a recipe and a data set to a run folder, resumable after every epoch."""

from __future__ import annotations

import csv
import math
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from maskmed_zoo.data.binding import bind
from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.data.dataset import Case, RawDataset, open_dataset
from maskmed_zoo.data.patches import PatchDataset
from maskmed_zoo.data.preprocess import Fingerprint
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.device import pick_device, pick_workers
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.run_folder import RunFolder, check_state, environment, now, write_atomically
from maskmed_zoo.runner.trainer import Batch, Trainer

CACHE = ".maskmed_cache"
"""Preprocessed cases, in the folder that holds the runs, shared by them; safe to delete."""
SMOOTHING = 0.9
"""Exponential moving average of the validation Dice that decides on the best weights (nnU-Net's)."""


def train(
    recipe: Recipe,
    *,
    data: Path,
    out: Path,
    fold: int = 0,
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> RunFolder:
    """Train `recipe` on one fold of the nnU-Net folder `data` and write the run to `out`.

    `resume` continues an interrupted run after its last whole epoch. Raises `DataError` for a data set that cannot be
    used or contradicts the recipe, `CheckpointError` if `out` holds a run and `resume` is not given, or one of another
    recipe, data set, fold or seed; `NonFiniteError` if training diverges.
    """
    display = display or Display()
    target = pick_device(device)
    dataset = open_dataset(data)
    recipe = bind(recipe, dataset)
    training, validation = dataset.splits(fold)
    run = RunFolder(out)
    _check_folder(run, recipe, dataset, fold, resume)
    trainer = Trainer(recipe, target)
    trainer.model.encoder.out_spec.check_patch(recipe.data.patch_size)
    cache = CaseCache(out.parent / CACHE, dataset, recipe.data.spacing)
    with display.task("preparing cases") as progress:
        cache.prepare((*training, *validation), workers=pick_workers(workers, target), progress=progress)
    fingerprint = cache.fingerprint(training)
    if not run.manifest_file.exists():
        manifest = {
            "recipe": recipe.name,
            "dataset": dataset.name,
            "data": str(dataset.root.resolve()),
            "fold": fold,
            "seed": recipe.train.seed,
            "training": [case.identifier for case in training],
            "validation": [case.identifier for case in validation],
            "fingerprint": [stats.to_dict() for stats in fingerprint],
            "started": now(),
            "environment": environment(target),
        }
        run.write_recipe(recipe)
        run.write_json(run.manifest_file, manifest)
    loop = _Loop(
        trainer=trainer,
        run=run,
        cache=cache,
        cases=(training, validation),
        fingerprint=fingerprint,
        workers=pick_workers(workers, target),
    )
    if resume:
        loop.load()
    loop.run_to_end(display)
    return run


class _Loop:
    """Epochs: steps, validation, checkpoint, metrics."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        run: RunFolder,
        cache: CaseCache,
        cases: tuple[tuple[Case, ...], tuple[Case, ...]],
        fingerprint: Fingerprint,
        workers: int,
    ) -> None:
        self.trainer, self.run, self.workers = trainer, run, workers
        self.recipe = trainer.recipe
        channels = self.recipe.data.channels or ()
        self.patches: dict[str, PatchDataset] = {}
        streams: tuple[Literal["train", "validation"], ...] = ("train", "validation")
        for stream, chosen in zip(streams, cases, strict=True):
            self.patches[stream] = PatchDataset(
                cache,
                chosen,
                self.recipe.data,
                channels=channels,
                fingerprint=fingerprint,
                seed=self.recipe.train.seed,
                stream=stream,
            )
        self.epoch, self.best, self.average = 0, -math.inf, math.nan
        self.rows: list[dict[str, Any]] = []

    def run_to_end(self, display: Display) -> None:
        total = self.recipe.train.epochs
        with display.training(total, self.epoch) as show:
            while self.epoch < total:
                row = self._epoch()
                self.epoch += 1
                self.rows.append(row)
                self._checkpoint(row)
                show(row)

    def _epoch(self) -> dict[str, Any]:
        config, start, work = self.recipe.train, time.perf_counter(), time.process_time()
        sums: dict[str, float] = {}
        for image, labels in self._batches(
            "train", self.epoch * config.iterations_per_epoch, config.iterations_per_epoch
        ):
            for name, value in self.trainer.step(image, labels).items():
                sums[name] = sums.get(name, 0.0) + value / config.iterations_per_epoch
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "iterations": self.trainer.iteration,
            **sums,
            **self.trainer.rates(),
        }
        is_due = (self.epoch + 1) % config.validate_every == 0 or self.epoch + 1 == config.epochs
        if is_due and config.validation_iterations:
            dice = self.trainer.validate(self._batches("validation", 0, config.validation_iterations))
            old = self.average
            self.average = dice if math.isnan(old) else SMOOTHING * old + (1 - SMOOTHING) * dice
            row |= {"validation_dice": dice, "validation_dice_average": self.average}
        return row | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - work}

    def _batches(self, stream: str, first: int, count: int) -> Iterator[Batch]:
        """`count` batches; batch i holds the patches i x batch size onwards, whatever the workers."""
        size = self.recipe.train.batch_size
        loader: DataLoader[Batch] = DataLoader(
            self.patches[stream],
            batch_size=size,
            sampler=range(first * size, (first + count) * size),
            num_workers=self.workers,
            pin_memory=self.trainer.device.type == "cuda",
        )
        yield from loader

    def _checkpoint(self, row: dict[str, Any]) -> None:
        is_best = row.get("validation_dice_average", -math.inf) > self.best
        if is_best:
            self.best = row["validation_dice_average"]
        state = self.trainer.state() | {"epoch": self.epoch, "best": self.best, "average": self.average}
        write_atomically(self.run.state_file, lambda p: torch.save(state, p))
        write_atomically(self.run.metrics_file, self._write_metrics)
        self.run.save_weights(self.trainer.model, "last", self.recipe)
        if is_best or not self.run.weights_file("best").exists():
            self.run.save_weights(self.trainer.model, "best", self.recipe)

    def _write_metrics(self, path: Path) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def load(self) -> None:
        path = self.run.state_file
        if not path.exists():
            return  # killed in its first epoch: start over
        try:
            state = torch.load(path, map_location=self.trainer.device, weights_only=True)
            check_state(self.trainer.model, state["model"], path)
            state["rng"] = state["rng"].cpu()
            self.trainer.load_state(state)
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path}: cannot be continued from ({reason}); train into a new folder") from error
        self.epoch, self.best, self.average = state["epoch"], state["best"], state["average"]
        if self.run.metrics_file.exists():
            with self.run.metrics_file.open(newline="", encoding="utf-8") as file:
                self.rows = [dict(row) for row in csv.DictReader(file) if int(row["epoch"]) < self.epoch]


def _check_folder(run: RunFolder, recipe: Recipe, dataset: RawDataset, fold: int, resume: bool) -> None:
    if not run.exists():
        if resume:
            raise CheckpointError(f"{run.path}: nothing to resume, no recipe.yaml here; leave --resume out to start")
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise CheckpointError(f"{run.path}: exists and is no run; give a new folder with --out")
        return
    if not resume:
        raise CheckpointError(f"{run.path}: already holds a run; add --resume to continue it, or give a new folder")
    difference = _first_difference(run.recipe().model_dump(mode="json"), recipe.model_dump(mode="json"))
    if difference:
        raise CheckpointError(
            f"{run.path}: checkpoint of another recipe: {difference}; resume with the run's recipe.yaml"
        )
    manifest = run.manifest() if run.manifest_file.exists() else {}
    for name, value in {"dataset": dataset.name, "fold": fold}.items():
        if manifest and manifest.get(name) != value:
            raise CheckpointError(
                f"{run.path}: the run is on {name} {manifest.get(name)}, not {value}; use a new folder"
            )


def _first_difference(old: Any, new: Any, path: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            found = _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if old == new else f"{path} was {old}, now {new}"
