"""The epochs of a training run: steps, validation on patches, a checkpoint after each and states within them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from maskmed_zoo import distributed
from maskmed_zoo.data.cache import Parts
from maskmed_zoo.data.patches import Patch, PatchDataset
from maskmed_zoo.errors import CheckpointError, NonFiniteError, StoppedError
from maskmed_zoo.runner.callbacks import Callback, Callbacks
from maskmed_zoo.runner.checkpoint import Begun, Progress, load, save, save_state
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.divergence import diverged
from maskmed_zoo.runner.divided import own_indices
from maskmed_zoo.runner.feed import Feed, Part, Stream
from maskmed_zoo.runner.manifest_file import EarlyEnd
from maskmed_zoo.runner.metrics_file import DICE
from maskmed_zoo.runner.pauses import Pauses, Turn
from maskmed_zoo.runner.pictures import can_draw
from maskmed_zoo.runner.progress_picture import ProgressPicture
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.run_warnings import RunWarnings
from maskmed_zoo.runner.session import Session
from maskmed_zoo.runner.steps_file import StepsFile
from maskmed_zoo.runner.switches import cudnn_benchmark
from maskmed_zoo.runner.trainer import Trainer
from maskmed_zoo.runner.training_display import training_display


class Loop:
    """Epochs: steps, validation, checkpoint, metrics."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        run: RunFolder,
        parts: Mapping[Stream, Parts],
        workers: int,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.trainer, self.run, self.workers, self.callbacks = trainer, run, workers, callbacks
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
        self._is_told_to_stop = False  # after a step, in all processes

    def resume(self) -> None:
        """Continue from the last state of the run."""
        with distributed.first_alone():  # who may have to mend files
            self.progress = load(self.run, self.trainer)
        steps = distributed.gathered(self.trainer.iteration)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{self.run.path}: processes read states of different steps ({', '.join(map(str, steps))}); give all "
                f"of them the same folder"
            )

    def run_to_end(self, display: Display) -> None:
        """The epochs that are left; `StoppedError`, or KeyboardInterrupt by Ctrl-C, if told to stop before."""
        config, progress = self.recipe.train, self.progress
        if not progress.is_over(config):
            model = self.trainer.model
            distributed.same_as_first([*model.parameters(), *model.buffers()])
            try:
                self._run(config.epochs, display)
            except (StoppedError, KeyboardInterrupt):
                if self._is_told_to_stop:
                    distributed.wait()  # until all is written, lest the end of one ends the one that writes
                raise
        elif not progress.is_stale(config):
            display.say(f"{self.run.path}: all {config.epochs} epochs are trained")
        if progress.is_stale(config):
            end = EarlyEnd(epoch=progress.epoch, of=config.epochs, validations=progress.stale, best=progress.best)
            display.say(f"{self.run.path}: {end.in_words()}")
            if distributed.is_first():
                self.run.note_early_end(end)

    def _run(self, total: int, display: Display) -> None:
        progress = self.progress
        with (
            Session(self.run.manifest_file, self.trainer.device, self.trainer.iteration) as session,
            training_display(display, total, self.recipe.train.iterations_per_epoch) as shown,
            self._feed() as feed,
            self.watched(shown, display.say) as watch,
            Pauses(self.recipe.train.save_minutes) as pauses,
            cudnn_benchmark(self.recipe.train, self.trainer.device),
        ):
            while not progress.is_over(self.recipe.train):
                try:
                    row = self._epoch(feed, pauses, session, watch)
                except NonFiniteError as error:
                    raise diverged(error, self.trainer, self.run, session.step) from error
                progress.epoch, progress.begun = progress.epoch + 1, None
                progress.rows.append(row)
                watch.epoch(row)
                with pauses.saving():
                    watch.save()
                    if distributed.is_first():
                        save(self.run, self.trainer, progress)
                    distributed.wait()  # however long that takes
                session.note(self.trainer.iteration)
            if _turn(pauses) is Turn.STOP:  # while the last epoch was saved: evaluation is not to begin
                done = "all" if progress.epoch == total else f"{progress.epoch} of"
                raise self._stop(pauses, f"{self.run.path}: {done} {total} epochs are trained and saved")

    def watched(self, shown: Callback, say: Callable[[str], None]) -> Callbacks:
        """What looks at the training, and writes down what it sees: in rank 0."""
        if not distributed.is_first():
            return Callbacks([], [], say)
        rows = self.progress.rows
        own = [shown, StepsFile(self.run.steps_file), RunWarnings(self.run.warnings_file, rows, say)]
        pictures = [ProgressPicture(self.run.progress_picture, rows)] if can_draw() else []
        callbacks = Callbacks(own, [*pictures, *self.callbacks], say)
        return callbacks.start(self.run.path, self.recipe, self.trainer.iteration)

    def _epoch(self, feed: Feed, pauses: Pauses, session: Session, watch: Callbacks) -> dict[str, Any]:
        """What is left of the epoch that has begun, or else of a new one; returns its row of metrics."""
        config, progress = self.recipe.train, self.progress
        begun = progress.begun = progress.begun or Begun(self.trainer.rates())
        done = self.trainer.iteration - progress.epoch * config.iterations_per_epoch
        clock = _Clock()
        for batch in clock.asked(feed.take("train", config.iterations_per_epoch - done)):
            rates = self.trainer.rates()
            values = self.trainer.step(**batch)
            begun.add(values, clock.waited)
            watch.step({"iteration": self.trainer.iteration, **values, **rates, **clock.times()})
            self._pause(pauses, session, watch)
        row: dict[str, Any] = {
            "epoch": progress.epoch,
            "iterations": self.trainer.iteration,
            **begun.means(),
            "skipped": begun.skipped,
            **begun.rates,
        }
        is_due = (progress.epoch + 1) % config.validate_every == 0 or progress.epoch + 1 == config.epochs
        if is_due and self._validates:
            found = self.trainer.validate(self._validation(feed, pauses, session, watch))
            row |= progress.validated(found.dice, config)
            row |= {f"{DICE}/{label}": dice for label, dice in found.by_label.items() if dice is not None}
            row |= {} if found.query_classes is None else {"query_classes": found.query_classes}
        begun.tick()
        return row | begun.times()

    def _validation(self, feed: Feed, pauses: Pauses, session: Session, watch: Callbacks) -> Iterator[Patch]:
        """Batches of validation, which is done anew as a whole if it is interrupted."""
        clock = _Clock()
        for batch in clock.asked(feed.take("validation", self.recipe.train.validation_iterations)):
            if self.progress.begun:
                self.progress.begun.data_seconds += clock.waited
            yield batch
            self._pause(pauses, session, watch)

    def _pause(self, pauses: Pauses, session: Session, watch: Callbacks) -> None:
        """Save within an epoch, and stop, where it is time to."""
        turn = _turn(pauses)
        if turn is Turn.GO_ON:
            return
        with pauses.saving():
            watch.save()
            if distributed.is_first():
                save_state(self.run, self.trainer, self.progress)
            distributed.wait()  # however long that takes
        step = self.trainer.iteration
        session.note(step)
        if turn is Turn.STOP:
            raise self._stop(pauses, f"{self.run.path}: saved after {step} of {self.recipe.train.iterations} steps")

    def _stop(self, pauses: Pauses, what: str) -> StoppedError | KeyboardInterrupt:
        """What all processes raise together."""
        self._is_told_to_stop = True
        return pauses.stop(what)

    @property
    def _validates(self) -> bool:
        """Whether there are cases to validate on, and patches of them are wanted."""
        return "validation" in self.patches and self.recipe.train.validation_iterations > 0

    def _feed(self) -> Feed:
        """The batches of the steps that are left."""
        config = self.recipe.train
        first, last = (step * config.batch_size for step in (self.trainer.iteration, config.iterations))
        parts: dict[Stream, Part] = {"train": Part(self.patches["train"], own_indices(first, last))}
        if self._validates:
            indices = own_indices(0, config.validation_iterations * config.batch_size)
            parts["validation"] = Part(self.patches["validation"], cycle(indices))
        is_cuda = self.trainer.device.type == "cuda"
        own = config.batch_size // distributed.size()
        return Feed(parts, batch_size=own, workers=self.workers, pin_memory=is_cuda)


def _turn(pauses: Pauses) -> Turn:
    """What all processes do now."""
    return Turn(distributed.largest(pauses.ask()))


class _Clock:
    """How long a batch was waited for, and how long it is since it was asked for; s."""

    def __init__(self) -> None:
        self.waited = self._asked = 0.0

    def asked(self, batches: Iterator[Patch]) -> Iterator[Patch]:
        """The batches."""
        while True:
            self._asked = time.perf_counter()
            batch = next(batches, None)
            self.waited = time.perf_counter() - self._asked
            if batch is None:
                return
            yield batch

    def times(self) -> dict[str, float]:
        """Those of a step that has been made."""
        return {"seconds": round(time.perf_counter() - self._asked, 6), "data_seconds": round(self.waited, 6)}
