"""What a training run leaves after an epoch, and is resumed from: weights, metrics, and the state of the trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.files import write_atomically
from maskmed_zoo.runner.metrics_file import read_rows, trained_epochs, write_rows
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.state_file import load_state
from maskmed_zoo.runner.trainer import Trainer


@dataclass
class Progress:
    """How far a run has come: whole epochs, their rows of metrics, the smoothed validation Dice and its best value."""

    epoch: int = 0
    best: float = -math.inf
    average: float = math.nan
    rows: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])


def save(run: RunFolder, trainer: Trainer, progress: Progress) -> None:
    """Write the checkpoint of an epoch that has just ended; `progress` holds its row."""
    average = progress.rows[-1].get("validation_dice_average", -math.inf)
    is_best = average > progress.best
    if is_best:
        progress.best = average
    if is_best or progress.best == -math.inf:  # before the first validation the newest are the best known
        run.save_weights(trainer.model, "best", trainer.recipe, epochs=progress.epoch)
    run.save_weights(trainer.model, "last", trainer.recipe, epochs=progress.epoch)
    write_atomically(run.metrics_file, lambda path: write_rows(progress.rows, path))
    # The state comes last: killed before it, the epoch is done again and writes the same files.
    state = trainer.state() | {"epoch": progress.epoch, "best": progress.best, "average": progress.average}
    write_atomically(run.state_file, lambda path: torch.save(state, path))


def load(run: RunFolder, trainer: Trainer) -> Progress:
    """Put the trainer into the state of the last whole epoch; of a run killed in its first one, leave it as it is.

    Lost rows of metrics are told and missed, lost last weights are written again. Raises `CheckpointError` for a state
    that is missing, damaged or of another network.
    """
    path = run.state_file
    rows = read_rows(run.metrics_file, trainer.recipe.train.iterations_per_epoch)
    if not path.exists():
        if trained_epochs(rows) > 1 or run.evaluation_file.exists():  # of its first epoch a killed run has one row
            raise CheckpointError(
                f"{path}: is missing, though epochs were trained; copy it back, or train into a new folder"
            )
        return Progress()
    state = load_state(path, trainer)
    progress = Progress(state["epoch"], state["best"], state["average"])
    progress.rows += [row for row in rows if int(row["epoch"]) < progress.epoch]
    lost = sorted(set(range(progress.epoch)) - {int(row["epoch"]) for row in progress.rows})
    if lost:
        trainer.say(
            f"{run.metrics_file}: damaged or missing; the rows of {len(lost)} of {progress.epoch} epochs are lost, "
            f"the first that of epoch {lost[0] + 1}; the weights are not, training goes on from them"
        )
    if not run.weights_file("last").is_file():
        run.save_weights(trainer.model, "last", trainer.recipe, epochs=progress.epoch)
    return progress
