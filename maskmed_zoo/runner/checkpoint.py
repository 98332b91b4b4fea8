"""What a training run leaves, and is resumed from: weights and metrics of whole epochs, and the state of the trainer.

The state is also written within an epoch. Everything is written in an order in which a run that was killed in between
does again what is newer than its state, and writes the same files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self

import torch

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.files import write_atomically
from maskmed_zoo.recipe.schema import TrainRecipe
from maskmed_zoo.runner.metrics_file import DICE, SINCE_BEST, read_rows, trained_epochs, write_rows
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.state_file import load_state, write_state
from maskmed_zoo.runner.trainer import Trainer

SMOOTHING = 0.9
"""Exponential moving average of the validation Dice that decides on the best weights (nnU-Net's)."""


class Begun:
    """An epoch that has begun: all that its row of metrics will be made from."""

    def __init__(self, rates: Mapping[str, float]) -> None:
        self.rates, self.losses, self.skipped = dict(rates), dict[str, list[float]](), 0  # rates of its first step
        self.seconds = self.cpu_seconds = self.data_seconds = 0.0  # the last: waiting for patches
        self._clock = time.perf_counter(), time.process_time()

    def add(self, values: Mapping[str, float], waited: float) -> None:
        """What a step returned, nothing if it was skipped, and how long its batch was waited for."""
        self.skipped += not values
        self.data_seconds += waited
        for name, value in values.items():
            self.losses.setdefault(name, []).append(value)

    def tick(self) -> None:
        """Count the time since the last call."""
        before, self._clock = self._clock, (time.perf_counter(), time.process_time())
        self.seconds += self._clock[0] - before[0]
        self.cpu_seconds += self._clock[1] - before[1]

    def means(self) -> dict[str, float]:
        """Each loss over the steps that were not skipped."""
        return {name: fmean(values) for name, values in self.losses.items()}

    def state(self) -> dict[str, Any]:
        """Everything as plain tensors, numbers and containers."""
        self.tick()
        losses = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.losses.items()}
        return {"rates": self.rates, "losses": losses, "skipped": self.skipped, **self.times()}

    def times(self) -> dict[str, float]:
        """What the epoch took until the last `tick`."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "data_seconds": self.data_seconds}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `state`."""
        begun = cls(state["rates"])
        begun.losses = {name: values.tolist() for name, values in state["losses"].items()}
        begun.skipped, begun.seconds, begun.cpu_seconds = state["skipped"], state["seconds"], state["cpu_seconds"]
        begun.data_seconds = state["data_seconds"]
        return begun


@dataclass
class Progress:
    """How far a run has come: whole epochs, their rows of metrics, the smoothed validation Dice and its best value.

    `stale` is how many validations there were since that; `begun` the epoch in which training is, None between two.
    """

    epoch: int = 0
    best: float = -math.inf
    average: float = math.nan
    stale: int = 0
    rows: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    begun: Begun | None = None

    def validated(self, dice: float, config: TrainRecipe) -> dict[str, float]:
        """Count a validation; returns what its row says of it."""
        old = self.average
        self.average = dice if math.isnan(old) else SMOOTHING * old + (1 - SMOOTHING) * dice
        self.stale = 0 if self.average > self.best else self.stale + 1
        self.best = max(self.best, self.average)
        counted = {} if config.patience is None else {SINCE_BEST: self.stale}
        return {DICE: dice, f"{DICE}_average": self.average, **counted}

    def is_stale(self, config: TrainRecipe) -> bool:
        """Whether validations have been without a new best for as long as the recipe waits."""
        return config.patience is not None and self.stale >= config.patience

    def is_over(self, config: TrainRecipe) -> bool:
        """Whether training has ended: after the last epoch, or early."""
        return self.epoch >= config.epochs or self.is_stale(config)


def save(run: RunFolder, trainer: Trainer, progress: Progress) -> None:
    """Write the checkpoint of an epoch that has just ended; `progress` holds its row."""
    is_best = DICE in progress.rows[-1] and not progress.stale
    if is_best or progress.best == -math.inf:  # before the first validation the newest are the best known
        run.save_weights(trainer.kept, "best", trainer.recipe, epochs=progress.epoch)
    run.save_weights(trainer.kept, "last", trainer.recipe, epochs=progress.epoch)
    write_atomically(run.metrics_file, lambda path: write_rows(progress.rows, path))
    # The state comes last: killed before it, what came since the one before is done again and writes the same files.
    save_state(run, trainer, progress)


def save_state(run: RunFolder, trainer: Trainer, progress: Progress) -> None:
    """Write what training goes on from, between two steps or two epochs."""
    state = trainer.state() | {key: getattr(progress, key) for key in ("epoch", "best", "average", "stale")}
    state["begun"] = progress.begun.state() if progress.begun else None
    write_state(state, run.state_file, keep=run.previous_state_file)


def load(run: RunFolder, trainer: Trainer) -> Progress:
    """Put the trainer into the last state that was written; of a run killed before its first one, leave it as it is.

    Lost rows of metrics are told and missed, lost last weights are written again where the state is theirs. Raises
    `CheckpointError` for a state that is missing, damaged or of another network, unless the one before is whole.
    """
    path = run.state_file
    rows = read_rows(run.metrics_file, trainer.recipe.train.iterations_per_epoch)
    if not run.has_state():
        if trained_epochs(rows) > 1 or run.evaluation_file.exists():  # of its first epoch a killed run has one row
            raise CheckpointError(
                f"{path}: is missing, though epochs were trained; copy it back, or train into a new folder"
            )
        return Progress()
    state = load_state(path, run.previous_state_file, trainer)
    begun = Begun.of(state["begun"]) if state.get("begun") else None
    progress = Progress(state["epoch"], state["best"], state["average"], state.get("stale", 0), begun=begun)
    progress.rows += [row for row in rows if int(row["epoch"]) < progress.epoch]
    lost = sorted(set(range(progress.epoch)) - {int(row["epoch"]) for row in progress.rows})
    if lost:
        trainer.say(
            f"{run.metrics_file}: damaged or missing; the rows of {len(lost)} of {progress.epoch} epochs are lost, "
            f"the first that of epoch {lost[0] + 1}; the weights are not, training goes on from them"
        )
    if not begun and not run.weights_file("last").is_file():
        run.save_weights(trainer.kept, "last", trainer.recipe, epochs=progress.epoch)
    return progress
