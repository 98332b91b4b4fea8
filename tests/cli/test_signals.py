"""Signals to a command: exit codes as in a shell, one line, no traceback, nothing half-written."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from maskmed_zoo.cli.main import main
from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.runner.trainer import Trainer


def words(tiny_recipe: Path, dataset: Path) -> list[str]:
    out = str(tiny_recipe.parent / "run")
    return ["train", str(tiny_recipe), "--data", str(dataset), "--out", out, "--device", "cpu"]


def sent_within(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: signal.Signals) -> None:
    """The signal comes whenever a method is called."""
    method = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_training_saves(
    *, tiny_recipe: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: signal.Signals, code: int,
) -> None:  # fmt: skip
    sent_within(monkeypatch, Trainer, "step", number)
    assert main(words(tiny_recipe, dataset)) == code
    run = tiny_recipe.parent / "run"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"{run}: saved after 1 of 6 steps, stopped by {number.name}; go on with --resume (resume=True in Python)"
    )
    assert {path.name for path in run.iterdir()} == {"recipe.yaml", "manifest.json", "state_last.pt", "steps.jsonl"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("owner", "name"), [(CaseCache, "_build"), (Predictor, "segment")], ids=["before", "after"])
def test_a_signal_before_and_after_training_is_one_line(
    *, tiny_recipe: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    owner: Any, name: str, number: signal.Signals,
) -> None:  # fmt: skip
    before = signal.getsignal(number)
    sent_within(monkeypatch, owner, name, number)
    assert main(words(tiny_recipe, dataset)) == 143
    assert capsys.readouterr().err.splitlines()[-1] == f"ended by {number.name}"
    assert signal.getsignal(number) is before
    assert not [*tiny_recipe.parent.rglob(".partial-*"), *tiny_recipe.parent.rglob(".unfinished-*")]
