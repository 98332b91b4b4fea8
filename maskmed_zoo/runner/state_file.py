"""`state_last.pt` as it is read: everything that training goes on from has to be of this recipe and this network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from maskmed_zoo.errors import CheckpointError, first_line
from maskmed_zoo.runner.run_folder import check_state
from maskmed_zoo.runner.trainer import Trainer

KEYS = ("model", "optimizer", "schedule", "scaler", "rng", "device_rng")
COUNTS = ("epoch", "iteration", "skipped_in_a_row")
MOMENTS = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
"""What an optimizer keeps of a parameter; the step and the squares are never negative."""


def load_state(path: Path, trainer: Trainer) -> dict[str, Any]:
    """Put the trainer into the state of a file, which is returned.

    Raises `CheckpointError` for a file that is damaged, something else, or of another network, recipe or schedule.
    """
    try:
        if not path.is_file():
            raise ValueError("no plain file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on files of other kinds
            state = torch.load(path, map_location="cpu", weights_only=True)
        _check(state, trainer, path)
        trainer.load_state(state)
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises whatever a file makes it raise
        reason = first_line(error)
        raise CheckpointError(f"{path}: cannot be continued from ({reason}); train into a new folder") from error
    return state


def _check(state: Any, trainer: Trainer, path: Path) -> None:
    """Raise an error of any kind unless the trainer can continue from the state."""
    if not isinstance(state, dict) or not {*KEYS, *COUNTS, "best", "average"} <= state.keys():
        raise ValueError("not the state of a training run")
    config = trainer.recipe.train
    for key in COUNTS:
        if type(state[key]) is not int or not 0 <= state[key] <= config.iterations:
            raise ValueError(f"'{key}' is none of this run's numbers")
    epoch, iteration = state["epoch"], state["iteration"]
    if not 0 < epoch <= config.epochs or iteration != epoch * config.iterations_per_epoch:
        raise ValueError(f"{iteration} steps in {epoch} epochs, of {config.iterations} in {config.epochs}")
    if state["schedule"]["last_epoch"] != iteration:
        raise ValueError(f"the schedule is at step {state['schedule']['last_epoch']}, not {iteration}")
    for key, unknown in (("best", -math.inf), ("average", math.nan)):
        if type(state[key]) is not float or not (0 <= state[key] <= 1 or str(state[key]) == str(unknown)):
            raise ValueError(f"'{key}' is no Dice")
    if not isinstance(state["model"], dict) or not all(torch.is_tensor(t) for t in state["model"].values()):
        raise ValueError("'model' holds no tensors")
    check_state(trainer.model, state["model"], path)
    _check_optimizer(state["optimizer"], trainer)
    _check_scaler(state["scaler"])
    for key in ("rng", "device_rng"):
        if not (key == "device_rng" and state[key] is None) and state[key].dtype != torch.uint8:
            raise ValueError(f"'{key}' is no state of a random generator")


def _check_optimizer(given: Any, trainer: Trainer) -> None:
    own = trainer.optimizer.state_dict()["param_groups"]
    if [group["params"] for group in given["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("the optimizer is of other parameters")
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for index, moments in cast(Mapping[Any, Any], given["state"]).items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError("the optimizer is of other parameters")
        if moments.keys() != MOMENTS[trainer.recipe.train.optimizer.kind]:
            raise ValueError("the state is of another optimizer")
        for name, value in moments.items():
            _check_moment(name, value, parameters[index])


def _check_moment(name: str, value: Tensor | None, parameter: Tensor) -> None:
    if value is None and name == "momentum_buffer":
        return
    if value is None:
        raise ValueError(f"the optimizer lacks '{name}' of a parameter")
    shape = () if name == "step" else parameter.shape
    is_fit = tuple(value.shape) == tuple(shape) and value.is_floating_point() and bool(value.isfinite().all())
    if not is_fit or (name in ("step", "exp_avg_sq") and bool((value < 0).any())):
        raise ValueError(f"'{name}' of the optimizer does not fit a parameter of {tuple(parameter.shape)}")


def _check_scaler(given: Any) -> None:
    """Empty where the run was on a device or in a precision that needs none."""
    facts = dict(given)
    if facts and not (0 < float(facts["scale"]) < math.inf and 0 <= int(facts["_growth_tracker"]) < 2**31):
        raise ValueError("'scaler' is no state of a loss scaler")
