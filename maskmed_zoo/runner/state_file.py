"""`state_last.pt` and `state_previous.pt`: what training goes on from, the newest and the one before.

A file of torch.save is a zip archive; its comment is the sha256 of all bytes before, so that a file and its checksum
are put in place in one step. It is verified when the file is read; earlier versions wrote none. What is read has to be
of this recipe and this network.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from maskmed_zoo.errors import CheckpointError, first_line
from maskmed_zoo.files import sha256_of, write_atomically
from maskmed_zoo.memory import is_exhausted
from maskmed_zoo.runner.run_folder import check_state
from maskmed_zoo.runner.trainer import Trainer

KEYS = ("model", "optimizer", "schedule", "scaler")
COUNTS = ("epoch", "iteration", "skipped_in_a_row")
MOMENTS = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
"""What an optimizer keeps of a parameter; the step and the squares are never negative."""
DAMAGED = "state_damaged.pt"
"""What a state is called that could not be read, when training goes on from the one before."""
_END, _COMMENT = 22, 64
"""Bytes of a zip archive's end without its comment, the last two of which are the comment's length; and of a sha256."""


def write_state(state: Mapping[str, Any], path: Path, *, keep: Path) -> None:
    """Write a state with its checksum; the one that was at `path` is moved to `keep`. Raises `OutputError`."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # of a path, torch does not say why it could not be written
            torch.save(state, file)
        with temporary.open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(_COMMENT.to_bytes(2, "little"))
        checksum = sha256_of(temporary)
        with temporary.open("ab") as file:
            file.write(checksum.encode("ascii"))

    write_atomically(path, write, keep=keep)


def load_state(path: Path, previous: Path, trainer: Trainer) -> dict[str, Any]:
    """Put the trainer into the state of the file at `path`, which is returned; of the one before if it is damaged.

    That is said then, and the damaged one renamed, so that it never takes the other's place. Raises `CheckpointError`
    where neither can be continued from: they are damaged, something else, or of another network, recipe or schedule.
    """
    try:
        if not path.exists():
            raise ValueError("is missing")
        return _load(path, trainer)
    except (CheckpointError, ValueError) as error:
        if (path.exists() and not path.is_file()) or not previous.is_file():
            raise _refused(path, error) from error
        try:
            state = _load(previous, trainer)
        except (CheckpointError, ValueError) as other:
            why = f"{_reason(error, path)}; {previous.name}: {_reason(other, previous)}"
            raise _refused(path, ValueError(why)) from error
        if path.exists():
            path.replace(path.with_name(DAMAGED))
        reason = _reason(error, path)
        trainer.say(f"{path}: {reason}; training goes on from {previous.name}, which is at step {state['iteration']}")
        return state


def _load(path: Path, trainer: Trainer) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ValueError("no plain file")
        _verify(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on files of other kinds
            state = torch.load(path, map_location="cpu", weights_only=True)
        _check(state, trainer, path)
        trainer.load_state(state)
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises whatever a file makes it raise
        if is_exhausted(error):
            raise
        raise ValueError(first_line(error)) from error
    return state


def _verify(path: Path) -> None:
    """Raise `ValueError` for a file that is not what was written, if it says what that was."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _END - _COMMENT)
        file.seek(start)
        tail = file.read()
        if tail[-_END:].startswith(b"PK\5\6") and tail.endswith(bytes(2)):
            return  # of an earlier version
        if len(tail) < _END + _COMMENT or not tail.startswith(b"PK\5\6"):
            raise ValueError("cut off, or no state of a training run")
        file.seek(0)
        left, checksum = start + _END, hashlib.sha256()
        while piece := file.read(min(left, 2**20)):
            checksum.update(piece)
            left -= len(piece)
    if checksum.hexdigest().encode("ascii") != tail[_END:]:
        raise ValueError("damaged, its checksum is another one")


def _refused(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(f"{path}: cannot be continued from ({error}); train into a new folder")


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _check(state: Any, trainer: Trainer, path: Path) -> None:
    """Raise an error of any kind unless the trainer can continue from the state."""
    if not isinstance(state, dict) or not {*KEYS, *COUNTS, "best", "average"} <= state.keys():
        raise ValueError("not the state of a training run")
    config = trainer.recipe.train
    for key in COUNTS:
        if type(state[key]) is not int or not 0 <= state[key] <= config.iterations:
            raise ValueError(f"'{key}' is none of this run's numbers")
    epoch, iteration = state["epoch"], state["iteration"]
    steps = iteration - epoch * config.iterations_per_epoch
    is_within = steps > 0 and epoch < config.epochs
    if not 0 <= epoch <= config.epochs or not 0 <= steps <= (config.iterations_per_epoch if is_within else 0):
        raise ValueError(f"{iteration} steps in {epoch} epochs, of {config.iterations} in {config.epochs}")
    _check_begun(state.get("begun"), steps)
    if state["schedule"]["last_epoch"] != iteration:
        raise ValueError(f"the schedule is at step {state['schedule']['last_epoch']}, not {iteration}")
    stale = state.get("stale", 0)  # earlier versions did not count
    if type(stale) is not int or not 0 <= stale <= epoch:
        raise ValueError(f"'stale' is no number of validations in {epoch} epochs")
    for key, unknown in (("best", -math.inf), ("average", math.nan)):
        if type(state[key]) is not float or not (0 <= state[key] <= 1 or str(state[key]) == str(unknown)):
            raise ValueError(f"'{key}' is no Dice")
    _check_model(state["model"], trainer, path)
    _check_average(state.get("ema"), trainer, path, iteration)
    _check_optimizer(state["optimizer"], trainer)
    _check_scaler(state["scaler"])


def _check_model(given: Any, trainer: Trainer, path: Path) -> None:
    if not isinstance(given, dict) or not all(torch.is_tensor(t) for t in cast(dict[str, Any], given).values()):
        raise ValueError("'model' holds no tensors")
    check_state(trainer.model, cast(dict[str, Any], given), path)


def _check_average(given: Any, trainer: Trainer, path: Path, iteration: int) -> None:
    """There where the recipe asks for an average, of at most as many steps as are made."""
    if (given is None) != (trainer.average is None):
        raise ValueError(
            f"'ema' is {'missing' if given is None else 'there'}, and train.ema is {trainer.recipe.train.ema}"
        )
    if given is None:
        return
    if type(given["updates"]) is not int or not 0 <= given["updates"] <= iteration:
        raise ValueError(f"'ema' is no average of {iteration} steps")
    _check_model(given["model"], trainer, path)


def _check_begun(given: Any, steps: int) -> None:
    """What its row of metrics needs of an epoch of which so many steps are made; nothing between two epochs."""
    if (given is None) == (steps > 0):
        raise ValueError(f"'begun' is not that of an epoch of {steps} steps")
    if given is None:
        return
    losses, skipped = given["losses"], given["skipped"]
    is_counted = type(skipped) is int and 0 <= skipped <= steps
    if not is_counted or any(v.dtype != torch.float64 or not 0 < v.numel() <= steps - skipped for v in losses.values()):
        raise ValueError(f"'begun' holds no losses of {steps} steps")
    numbers = [*given["rates"].values(), given["seconds"], given["cpu_seconds"], given["data_seconds"]]
    if not all(type(number) is float and 0 <= number < math.inf for number in numbers):
        raise ValueError("'begun' holds no rates and times")
    if not all(type(name) is str for name in (*losses, *given["rates"])):
        raise ValueError("'begun' names no losses and rates")


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
