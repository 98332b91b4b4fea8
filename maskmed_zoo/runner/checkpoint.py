"""What a training run leaves after an epoch, and is resumed from: weights, metrics, and the state of the trainer."""

from __future__ import annotations

import csv
import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from maskmed_zoo.errors import CheckpointError, first_line
from maskmed_zoo.files import write_atomically
from maskmed_zoo.runner.run_folder import RunFolder, check_state
from maskmed_zoo.runner.trainer import Trainer


@dataclass
class Progress:
    """How far a run has come: whole epochs, their rows of metrics, the smoothed validation Dice and its best value."""

    epoch: int = 0
    best: float = -math.inf
    average: float = math.nan
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def save(run: RunFolder, trainer: Trainer, progress: Progress) -> None:
    """Write the checkpoint of an epoch that has just ended; `progress` holds its row."""
    average = progress.rows[-1].get("validation_dice_average", -math.inf)
    is_best = average > progress.best
    if is_best:
        progress.best = average
    if is_best or progress.best == -math.inf:  # before the first validation the newest are the best known
        run.save_weights(trainer.model, "best", trainer.recipe)
    run.save_weights(trainer.model, "last", trainer.recipe)
    write_atomically(run.metrics_file, lambda path: _write_metrics(progress.rows, path))
    # The state comes last: killed before it, the epoch is done again and writes the same files.
    state = trainer.state() | {"epoch": progress.epoch, "best": progress.best, "average": progress.average}
    write_atomically(run.state_file, lambda path: torch.save(state, path))


def load(run: RunFolder, trainer: Trainer) -> Progress:
    """Put the trainer into the state of the last whole epoch; of a run killed in its first one, leave it as it is.

    Raises `CheckpointError` for a state that is damaged or of another network.
    """
    path = run.state_file
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        check_state(trainer.model, state["model"], path)
        trainer.load_state(state)
        progress = Progress(state["epoch"], state["best"], state["average"])
        with run.metrics_file.open(newline="", encoding="utf-8") as file:
            progress.rows = [dict(row) for row in csv.DictReader(file) if int(row["epoch"]) < progress.epoch]
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path}: cannot be continued from ({reason}); train into a new folder") from error
    return progress


def _write_metrics(rows: list[dict[str, Any]], path: Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
