"""Two parameter groups and a schedule that scales each by its own base rate (MaskMed §4, Table 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe.schema import Optimizer, TrainRecipe


def build_optimizer(model: SegmentationModel, config: Optimizer) -> torch.optim.Optimizer:
    """SGD (Nesterov) or AdamW over the groups 'cnn' at `lr` and 'transformer' at `lr` x `transformer_scale`.

    On the CPU by PyTorch's fused kernels unless the recipe says otherwise, the same numbers in a fifth of the time.
    """
    rates = {"cnn": config.lr, "transformer": config.lr * config.transformer_scale}
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": rates[name], "name": name}
        for name, parameters in model.parameter_groups().items()
        if parameters
    ]
    fused = {"on": True, "off": False, "auto": None}[config.fused]  # None: PyTorch's own choice
    if config.fused == "auto" and all(p.device.type == "cpu" for p in model.parameters()):
        fused = True
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)
    sgd = torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=fused,
    )
    if fused and config.momentum:
        # Zeros are what a missing buffer stands for, and the fused kernel refuses to miss some of them: those of
        # weights whose first gradient comes after the first step.
        for p in (p for group in groups for p in group["params"]):
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Any]) -> None:
    """Go on from the "state" of a `state_dict`, in memory as the weights lie now, as fused kernels expect it."""
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if name != "step" and torch.is_tensor(value) and value.shape == parameter.shape:
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_schedule(optimizer: torch.optim.Optimizer, recipe: TrainRecipe) -> LambdaLR:
    """Linear warm-up, then (1 - progress) ** power, stepped once per iteration; every group keeps its proportion."""
    return LambdaLR(optimizer, lambda iteration: rate_factor(recipe.optimizer, iteration, recipe.iterations))


def rate_factor(config: Optimizer, iteration: int, total: int) -> float:
    """What the base rates are multiplied with at an iteration of `total`."""
    warm = min(1.0, (iteration + 1) / (config.warmup_iterations + 1))
    return warm * max(0.0, 1 - iteration / total) ** config.poly_power
