"""Events for TensorBoard, in the run's folder `tensorboard`: `train --tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import UserError
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.callbacks import Callback

FOLDER = "tensorboard"
"""In the run's folder."""


class TensorBoard(Callback):
    """Every number of a step, as `step/…`, and of an epoch, as `epoch/…`, over the steps made.

    A resumed run writes a new file there, which takes back what the one before holds of later steps. Raises `UserError`
    where TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError('this needs TensorBoard: pip install "maskmed-zoo[tb]"') from error
        self._make, self._writer = SummaryWriter, None

    def on_start(self, run: Path, recipe: Recipe, step: int) -> None:
        """Begin a file; TensorBoard drops what earlier ones hold of the steps that come now."""
        self._writer: Any = self._make(str(run / FOLDER), purge_step=step + 1)

    def on_step(self, values: Mapping[str, float]) -> None:
        """All but its number."""
        self._add("step", values, values["iteration"], without="iteration")

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """All but its numbers."""
        self._add("epoch", row, row["iterations"], without="iterations")

    def on_save(self) -> None:
        """What was told by now is in the file."""
        self._writer.flush()

    def on_end(self, error: BaseException | None) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, group: str, values: Mapping[str, Any], step: float, without: str) -> None:
        for name, value in values.items():
            if name != without:
                self._writer.add_scalar(f"{group}/{name}", value, int(step))
