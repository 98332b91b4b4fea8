"""The epochs of a training run: steps, validation on patches, and a checkpoint after each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any, Literal

from torch.utils.data import DataLoader

from maskmed_zoo.data.cache import Parts
from maskmed_zoo.data.patches import Patch, PatchDataset
from maskmed_zoo.errors import DataError, MemoryShortageError, first_line
from maskmed_zoo.runner.checkpoint import Progress, load, save
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer

SMOOTHING = 0.9
"""Exponential moving average of the validation Dice that decides on the best weights (nnU-Net's)."""
Stream = Literal["train", "validation"]


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
        with display.training(total, progress.epoch) as show:
            while progress.epoch < total:
                row = self._epoch()
                progress.epoch += 1
                progress.rows.append(row)
                save(self.run, self.trainer, progress)
                show(row)

    def _epoch(self) -> dict[str, Any]:
        config, start, work = self.recipe.train, time.perf_counter(), time.process_time()
        sums: dict[str, list[float]] = {}
        rates = self.trainer.rates()  # of the epoch's first step
        progress = self.progress
        first, skipped = progress.epoch * config.iterations_per_epoch, 0
        for batch in self._batches("train", first, config.iterations_per_epoch):
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
        if is_due and config.validation_iterations:
            dice = self.trainer.validate(self._batches("validation", 0, config.validation_iterations))
            old = progress.average
            progress.average = dice if math.isnan(old) else SMOOTHING * old + (1 - SMOOTHING) * dice
            row |= {"validation_dice": dice, "validation_dice_average": progress.average}
        return row | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - work}

    def _batches(self, stream: Stream, first: int, count: int) -> Iterator[Patch]:
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
            raise DataError(str(error.args[0]).strip().rsplit("DataError: ", 1)[-1]) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise MemoryShortageError(
                f"a process that prepares patches was ended ({first_line(error)}), most often for lack of memory; use "
                f"fewer --workers, or 0"
            ) from error
