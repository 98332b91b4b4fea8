"""The epochs of a training run: steps, validation on patches, a checkpoint after each and states within them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

from maskmed_zoo.data.cache import Parts
from maskmed_zoo.data.patches import Patch, PatchDataset
from maskmed_zoo.runner.checkpoint import Begun, Progress, load, save, save_state
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.feed import Feed, Part, Stream
from maskmed_zoo.runner.pauses import Pauses, Turn
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.session import Session
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
        """Continue from the last state of the run."""
        self.progress = load(self.run, self.trainer)

    def run_to_end(self, display: Display) -> None:
        """The epochs that are left; `StoppedError`, or KeyboardInterrupt by Ctrl-C, if told to stop before."""
        total, progress = self.recipe.train.epochs, self.progress
        if progress.epoch >= total:
            display.say(f"{self.run.path}: all {total} epochs are trained")
            return
        with (
            Session(self.run.manifest_file, self.trainer.device, self.trainer.iteration) as session,
            display.training(total, progress.epoch) as show,
            self._feed() as feed,
            Pauses(self.recipe.train.save_minutes) as pauses,
        ):
            while progress.epoch < total:
                row = self._epoch(feed, pauses, session)
                progress.epoch, progress.begun = progress.epoch + 1, None
                progress.rows.append(row)
                save(self.run, self.trainer, progress)
                pauses.saved()
                session.note(self.trainer.iteration)
                show(row)
            if pauses.ask() is Turn.STOP:  # while the last epoch was saved: evaluation is not to begin
                raise pauses.stop(f"{self.run.path}: all {total} epochs are trained and saved")

    def _epoch(self, feed: Feed, pauses: Pauses, session: Session) -> dict[str, Any]:
        """What is left of the epoch that has begun, or else of a new one; returns its row of metrics."""
        config, progress = self.recipe.train, self.progress
        begun = progress.begun = progress.begun or Begun(self.trainer.rates())
        done = self.trainer.iteration - progress.epoch * config.iterations_per_epoch
        for batch in feed.take("train", config.iterations_per_epoch - done):
            begun.add(self.trainer.step(**batch))
            self._pause(pauses, session)
        row: dict[str, Any] = {
            "epoch": progress.epoch,
            "iterations": self.trainer.iteration,
            **begun.means(),
            "skipped": begun.skipped,
            **begun.rates,
        }
        is_due = (progress.epoch + 1) % config.validate_every == 0 or progress.epoch + 1 == config.epochs
        if is_due and config.validation_iterations:
            dice = self.trainer.validate(self._validation(feed, pauses, session))
            old = progress.average
            progress.average = dice if math.isnan(old) else SMOOTHING * old + (1 - SMOOTHING) * dice
            row |= {"validation_dice": dice, "validation_dice_average": progress.average}
        begun.tick()
        return row | {"seconds": begun.seconds, "cpu_seconds": begun.cpu_seconds}

    def _validation(self, feed: Feed, pauses: Pauses, session: Session) -> Iterator[Patch]:
        """Batches of validation, which is done anew as a whole if it is interrupted."""
        for batch in feed.take("validation", self.recipe.train.validation_iterations):
            yield batch
            self._pause(pauses, session)

    def _pause(self, pauses: Pauses, session: Session) -> None:
        """Save within an epoch, and stop, where it is time to."""
        turn = pauses.ask()
        if turn is Turn.GO_ON:
            return
        save_state(self.run, self.trainer, self.progress)
        pauses.saved()
        step = self.trainer.iteration
        session.note(step)
        if turn is Turn.STOP:
            raise pauses.stop(f"{self.run.path}: saved after {step} of {self.recipe.train.iterations} steps")

    def _feed(self) -> Feed:
        """The batches of the steps that are left."""
        config = self.recipe.train
        first, last = (step * config.batch_size for step in (self.trainer.iteration, config.iterations))
        parts: dict[Stream, Part] = {"train": Part(self.patches["train"], range(first, last))}
        if config.validation_iterations:
            indices = range(config.validation_iterations * config.batch_size)
            parts["validation"] = Part(self.patches["validation"], cycle(indices))
        is_cuda = self.trainer.device.type == "cuda"
        return Feed(parts, batch_size=config.batch_size, workers=self.workers, pin_memory=is_cuda)
