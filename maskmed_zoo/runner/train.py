"""`train`: from a recipe and a data set to a run folder, resumable after every epoch."""

from __future__ import annotations

import csv
import math
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.cache import CaseCache, Parts, fingerprint_of
from maskmed_zoo.data.dataset import Case
from maskmed_zoo.data.patches import Patch, PatchDataset
from maskmed_zoo.data.preprocess import Fingerprint
from maskmed_zoo.data.sources import Data, Source, open_sources
from maskmed_zoo.device import pick_device, pick_workers
from maskmed_zoo.errors import CheckpointError, DataError
from maskmed_zoo.files import write_atomically
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.run_folder import RunFolder, check_state, environment, now
from maskmed_zoo.runner.trainer import Trainer

Splits = list[tuple[tuple[Case, ...], tuple[Case, ...]]]
"""Training and validation cases of each data set."""
CACHE = ".maskmed_cache"
"""Preprocessed cases, in the folder that holds the runs, shared by them; safe to delete."""
SMOOTHING = 0.9
"""Exponential moving average of the validation Dice that decides on the best weights (nnU-Net's)."""


def train(
    recipe: Recipe,
    *,
    data: Data,
    out: Path,
    fold: int = 0,
    device: str | None = None,
    workers: int | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> RunFolder:
    """Train `recipe` on one fold of the nnU-Net folder `data`, or of several, and write the run to `out`.

    Of a folder given as `DIR@all` every case trains and none validates. Labels of several data sets are merged by
    name. `resume` continues an interrupted run after its last whole epoch. Raises `DataError` for data sets that cannot
    be used or contradict the recipe, `CheckpointError` if `out` holds a run and `resume` is not given, or one of
    another recipe, data set, fold or seed; `NonFiniteError` if training diverges.
    """
    display = display or Display()
    target = pick_device(device)
    sources = open_sources(data)
    recipe = bind(recipe, *(source.dataset for source in sources))
    splits = [source.splits(fold) for source in sources]
    run = RunFolder(out)
    workers = pick_workers(workers, target)
    facts = run_facts(sources, splits, fold)
    check_folder(run, recipe, facts, resume)
    trainer = Trainer(recipe, target, display.say)
    trainer.model.encoder.out_spec.check_patch(recipe.data.patch_size)
    caches: list[CaseCache] = []
    for source, cases in zip(sources, splits, strict=True):
        cache = CaseCache(out.parent / CACHE, source.dataset, recipe.data.spacing, recipe.data.instances)
        with display.task(f"preparing cases of {source.dataset.name}") as progress:
            cache.prepare((*cases[0], *cases[1]), workers=workers, progress=progress)
        caches.append(cache)
    training, validation = ([(c, cases[side]) for c, cases in zip(caches, splits, strict=True)] for side in (0, 1))
    if not run.manifest_file.exists():
        paths = [{"path": str(source.dataset.root.resolve())} for source in sources]
        manifest = facts | {
            "recipe": recipe.name,
            "data": [path | record for path, record in zip(paths, facts["data"], strict=True)],
            "seed": recipe.train.seed,
            "fingerprint": [stats.to_dict() for stats in fingerprint_of(training)],
            "started": now(),
            "environment": environment(target),
        }
        run.write_recipe(recipe)
        run.write_json(run.manifest_file, manifest)
    loop = _Loop(
        trainer=trainer,
        run=run,
        parts={"train": training, "validation": validation},
        fingerprint=run.fingerprint(),
        workers=workers,
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
        parts: dict[Literal["train", "validation"], Parts],
        fingerprint: Fingerprint,
        workers: int,
    ) -> None:
        self.trainer, self.run, self.workers = trainer, run, workers
        self.recipe = trainer.recipe
        self.patches = {
            stream: PatchDataset(
                chosen,
                self.recipe.data,
                channels=self.recipe.data.channels or (),
                labels=self.recipe.data.labels or {},
                fingerprint=fingerprint,
                seed=self.recipe.train.seed,
                stream=stream,
            )
            for stream, chosen in parts.items()
        }
        self.epoch, self.best, self.average = 0, -math.inf, math.nan
        self.rows: list[dict[str, Any]] = []

    def run_to_end(self, display: Display) -> None:
        total = self.recipe.train.epochs
        if self.epoch >= total:
            display.say(f"{self.run.path}: all {total} epochs are trained")
        with display.training(total, self.epoch) as show:
            while self.epoch < total:
                row = self._epoch()
                self.epoch += 1
                self.rows.append(row)
                self._checkpoint(row)
                show(row)

    def _epoch(self) -> dict[str, Any]:
        config, start, work = self.recipe.train, time.perf_counter(), time.process_time()
        sums: dict[str, list[float]] = {}
        rates = self.trainer.rates()  # of the epoch's first step
        first, skipped = self.epoch * config.iterations_per_epoch, 0
        for batch in self._batches("train", first, config.iterations_per_epoch):
            values = self.trainer.step(**batch)
            skipped += not values
            for name, value in values.items():
                sums.setdefault(name, []).append(value)
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "iterations": self.trainer.iteration,
            **{name: fmean(values) for name, values in sums.items()},
            "skipped": skipped,
            **rates,
        }
        is_due = (self.epoch + 1) % config.validate_every == 0 or self.epoch + 1 == config.epochs
        if is_due and config.validation_iterations:
            dice = self.trainer.validate(self._batches("validation", 0, config.validation_iterations))
            old = self.average
            self.average = dice if math.isnan(old) else SMOOTHING * old + (1 - SMOOTHING) * dice
            row |= {"validation_dice": dice, "validation_dice_average": self.average}
        return row | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - work}

    def _batches(self, stream: Literal["train", "validation"], first: int, count: int) -> Iterator[Patch]:
        """`count` batches; batch i holds the patches i x batch size onwards, whatever the workers."""
        size = self.recipe.train.batch_size
        loader: DataLoader[Patch] = DataLoader(
            self.patches[stream],
            batch_size=size,
            sampler=range(first * size, (first + count) * size),
            num_workers=self.workers,
            pin_memory=self.trainer.device.type == "cuda",
        )
        try:
            yield from loader
        except DataError as error:  # a loader process puts its whole traceback before the message
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from error

    def _checkpoint(self, row: dict[str, Any]) -> None:
        is_best = row.get("validation_dice_average", -math.inf) > self.best
        if is_best:
            self.best = row["validation_dice_average"]
        if is_best or self.best == -math.inf:  # before the first validation the newest are the best known
            self.run.save_weights(self.trainer.model, "best", self.recipe)
        self.run.save_weights(self.trainer.model, "last", self.recipe)
        write_atomically(self.run.metrics_file, self._write_metrics)
        # The state comes last: killed before it, the epoch is done again and writes the same files.
        state = self.trainer.state() | {"epoch": self.epoch, "best": self.best, "average": self.average}
        write_atomically(self.run.state_file, lambda p: torch.save(state, p))

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
            self.trainer.load_state(state)
            self.epoch, self.best, self.average = state["epoch"], state["best"], state["average"]
            with self.run.metrics_file.open(newline="", encoding="utf-8") as file:
                self.rows = [dict(row) for row in csv.DictReader(file) if int(row["epoch"]) < self.epoch]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path}: cannot be continued from ({reason}); train into a new folder") from error


def run_facts(sources: Sequence[Source], splits: Splits, fold: int) -> dict[str, Any]:
    """What a run has to keep to when it is resumed."""
    pairs = list(zip(sources, splits, strict=True))
    return {
        "dataset": " + ".join(source.title for source in sources),
        "fold": fold,
        "training": [source.name_of(case) for source, (training, _) in pairs for case in training],
        "validation": [source.name_of(case) for source, (_, validation) in pairs for case in validation],
        "data": [source.record((*training, *validation)) for source, (training, validation) in pairs],
    }


def check_folder(run: RunFolder, recipe: Recipe, facts: dict[str, Any], resume: bool) -> None:
    """Raise `CheckpointError` unless `run` is free or, to `resume`, holds one of this recipe and these `run_facts`."""
    if not run.exists():
        if resume:
            raise CheckpointError(f"{run.path}: nothing to resume, no recipe.yaml here; leave --resume out to start")
        if run.path.exists() and (not run.path.is_dir() or any(not p.name.startswith(".") for p in run.path.iterdir())):
            raise CheckpointError(f"{run.path}: exists and is no run; give a new folder with --out")
        return
    if not resume:
        raise CheckpointError(f"{run.path}: already holds a run; add --resume to continue it, or give a new folder")
    difference = _first_difference(run.recipe().model_dump(mode="json"), recipe.model_dump(mode="json"))
    if difference:
        raise CheckpointError(
            f"{run.path}: checkpoint of another recipe: {difference}; resume with the run's recipe.yaml"
        )
    if not run.manifest_file.exists():
        return
    manifest = run.manifest()
    kept = manifest | {"data": [{k: v for k, v in record.items() if k != "path"} for record in manifest["data"]]}
    changes = {"data": "sets whose labels, or labels annotated in a case, are now others"}
    for name, value in facts.items():
        if kept.get(name) != value:
            change = changes.get(name, "cases that are now others")
            change = f"{kept.get(name)}, not {value}" if name in ("dataset", "fold") else change
            raise CheckpointError(f"{run.path}: the run is on {name} {change}; restore the data or use a new folder")


def _first_difference(old: Any, new: Any, path: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            found = _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if old == new else f"{path} was {old}, now {new}"
