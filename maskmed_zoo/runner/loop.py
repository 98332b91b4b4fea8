"""The epochs of a training run: steps, validation on patches, and a checkpoint after each."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import cycle
from statistics import fmean
from typing import Any

from maskmed_zoo.data.cache import Parts
from maskmed_zoo.data.patches import PatchDataset
from maskmed_zoo.runner.checkpoint import Progress, load, save
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.feed import Feed, Part, Stream
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer

SMOOTHING = 0.9
"""Exponential moving average of the validation Dice that decides on the best weights (nnU-Net's)."""


class Loop:
    """Epochs: steps, validation, checkpoint, metrics."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        run: RunFolder,
        parts: Mapping[Stream, Parts],
        workers: int,
    ) -> None:
        self.trainer, self.run, self.workers = trainer, run, workers
        self.recipe = trainer.recipe
        self.patches = {
            stream: PatchDataset(
                chosen,
                self.recipe.data,
                labels=self.recipe.labels,
                batch_size=self.recipe.train.batch_size,
                seed=self.recipe.train.seed,
                stream=stream,
            )
            for stream, chosen in parts.items()
        }
        self.progress = Progress()

    def resume(self) -> None:
        """Continue after the last whole epoch of the run."""
        self.progress = load(self.run, self.trainer)

    def run_to_end(self, display: Display) -> None:
        """The epochs that are left."""
        total, progress = self.recipe.train.epochs, self.progress
        if progress.epoch >= total:
            display.say(f"{self.run.path}: all {total} epochs are trained")
            return
        with display.training(total, progress.epoch) as show, self._feed() as feed:
            while progress.epoch < total:
                row = self._epoch(feed)
                progress.epoch += 1
                progress.rows.append(row)
                save(self.run, self.trainer, progress)
                show(row)

    def _epoch(self, feed: Feed) -> dict[str, Any]:
        config, start, work = self.recipe.train, time.perf_counter(), time.process_time()
        sums: dict[str, list[float]] = {}
        rates = self.trainer.rates()  # of the epoch's first step
        progress, skipped = self.progress, 0
        for batch in feed.take("train", config.iterations_per_epoch):
            values = self.trainer.step(**batch)
            skipped += not values
            for name, value in values.items():
                sums.setdefault(name, []).append(value)
        row: dict[str, Any] = {
            "epoch": progress.epoch,
            "iterations": self.trainer.iteration,
            **{name: fmean(values) for name, values in sums.items()},
            "skipped": skipped,
            **rates,
        }
        is_due = (progress.epoch + 1) % config.validate_every == 0 or progress.epoch + 1 == config.epochs
        if is_due and self._validates:
            dice = self.trainer.validate(feed.take("validation", config.validation_iterations))
            old = progress.average
            progress.average = dice if math.isnan(old) else SMOOTHING * old + (1 - SMOOTHING) * dice
            row |= {"validation_dice": dice, "validation_dice_average": progress.average}
        return row | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - work}

    @property
    def _validates(self) -> bool:
        """Whether there are cases to validate on, and patches of them are wanted."""
        return "validation" in self.patches and self.recipe.train.validation_iterations > 0

    def _feed(self) -> Feed:
        """The batches of the epochs that are left."""
        config = self.recipe.train
        first, last = (
            n * config.iterations_per_epoch * config.batch_size for n in (self.progress.epoch, config.epochs)
        )
        parts: dict[Stream, Part] = {"train": Part(self.patches["train"], range(first, last))}
        if self._validates:
            indices = range(config.validation_iterations * config.batch_size)
            parts["validation"] = Part(self.patches["validation"], cycle(indices))
        is_cuda = self.trainer.device.type == "cuda"
        return Feed(parts, batch_size=config.batch_size, workers=self.workers, pin_memory=is_cuda)
