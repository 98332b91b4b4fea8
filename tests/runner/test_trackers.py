"""The callbacks for Weights & Biases and MLflow that the page of watching shows, with stand-ins for both."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest

from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.callbacks import Callback, Callbacks
from tests.test_docs import ROOT, blocks

ROW = {"epoch": 0, "iterations": 2, "loss": 0.5, "validation_dice/left": 0.25}


def shown() -> dict[str, Any]:
    """What the Python of the page defines."""
    names: dict[str, Any] = {}
    for _, source in blocks(ROOT / "docs/howto/watch-a-run.md", "python"):
        exec(source, names)
    return names


def watched(name: str, run: Path, first: int = 0, error: Exception | None = None) -> None:
    """Two steps and an epoch."""
    said: list[str] = []
    callback: Callback = shown()[name]()
    recipe = load_recipe("maskmed_phantom")
    with suppress(ValueError), Callbacks([], [callback], said.append).start(run, recipe, first) as callbacks:
        for step in (first + 1, first + 2):
            callbacks.step({"iteration": step, "loss": 0.5})
        callbacks.epoch(ROW)
        callbacks.save()
        if error is not None:
            raise error
    assert said == []


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Run:
        def log(self, data: dict[str, Any], step: int | None = None) -> None: ...
        def finish(self, exit_code: int | None = None) -> None: ...

    logged = create_autospec(Run, instance=True)
    init = MagicMock(return_value=logged)
    stub: Any = ModuleType("wandb")
    stub.init = init
    monkeypatch.setitem(sys.modules, "wandb", stub)
    watched("WeightsAndBiases", tmp_path / "mine")
    given = init.call_args.kwargs
    assert (given["id"], given["resume"], given["config"]["name"]) == ("mine", "allow", "maskmed_phantom")
    steps = [(call.args[0], call.kwargs["step"]) for call in logged.log.call_args_list]
    assert steps[1] == ({"step/iteration": 2, "step/loss": 0.5}, 2)
    assert steps[2] == ({f"epoch/{name}": value for name, value in ROW.items()}, 2)
    logged.finish.assert_called_once_with(exit_code=0)
    watched("WeightsAndBiases", tmp_path / "mine", 2, ValueError("x"))
    logged.finish.assert_called_with(exit_code=1)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub: Any = ModuleType("mlflow")
    for name in ("log_dict", "log_metrics", "end_run"):
        setattr(stub, name, MagicMock())
    stub.start_run = MagicMock(return_value=SimpleNamespace(info=SimpleNamespace(run_id="abc")))
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    watched("MLflow", tmp_path)
    stub.start_run.assert_called_once_with(run_name=tmp_path.name)
    stub.log_metrics.assert_called_once_with(ROW, step=2)
    stub.end_run.assert_called_once_with("FINISHED")
    watched("MLflow", tmp_path, 2, ValueError("x"))
    stub.start_run.assert_called_with(run_id="abc")
    assert stub.log_dict.call_count == 1
    stub.end_run.assert_called_with("FAILED")
