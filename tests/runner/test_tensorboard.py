"""Events for TensorBoard: all that is told, and once, though a run is interrupted and makes steps again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maskmed_zoo.errors import UserError
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.tensorboard import TensorBoard


def test_without_it_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=r'needs TensorBoard: pip install "maskmed-zoo\[tb\]"'):
        TensorBoard()


def session(run: Path, recipe: Path, first: int, last: int, saved: int) -> None:
    """Steps that one process makes, two to an epoch; it is killed after the last one."""
    callback = TensorBoard()
    callback.on_start(run, load_recipe(recipe), first)
    for step in range(first + 1, last + 1):
        callback.on_step({"iteration": step, "loss": step + first / 100, "seconds": 1.0})
        if step % 2 == 0:
            row = {"epoch": step // 2 - 1, "iterations": step, "validation_dice/left": step / 100, "loss": 0.5}
            callback.on_epoch(row)
        if step == saved:
            callback.on_save()
    callback.on_end(None)


def test_events_of_a_resumed_run(tmp_path: Path, tiny_recipe: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra 'tb'")
    session(tmp_path, tiny_recipe, 0, 7, saved=4)
    session(tmp_path, tiny_recipe, 4, 8, saved=8)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {*events.Tags()["scalars"]} == {
        "step/loss", "step/seconds", "epoch/epoch", "epoch/loss", "epoch/validation_dice/left",
    }  # fmt: skip
    steps = [(event.step, round(event.value, 2)) for event in events.Scalars("step/loss")]
    assert steps == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5.04), (6, 6.04), (7, 7.04), (8, 8.04)]
    dice = [(event.step, round(event.value, 2)) for event in events.Scalars("epoch/validation_dice/left")]
    assert dice == [(2, 0.02), (4, 0.04), (6, 0.06), (8, 0.08)]
