"""One training run in memory: model, loss, optimiser, schedule; steps, validation and the state to continue from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from maskmed_zoo.build import model_of
from maskmed_zoo.errors import NonFiniteError
from maskmed_zoo.model import build_loss
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.device import autocast, autocast_dtype
from maskmed_zoo.runner.optimizer import build_optimizer, build_schedule

Batch = tuple[Tensor, Tensor]


class Trainer:
    """Everything that changes while training."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.train.seed)
        self.model = model_of(recipe).to(device)
        ignore = None if recipe.data.labels is None else recipe.data.labels.get("ignore")
        self.ignore_label = ignore
        self.loss = build_loss(recipe.model, num_classes=self.model.num_classes, ignore_label=ignore).to(device)
        self.optimizer = build_optimizer(self.model, recipe.train.optimizer)
        self.schedule = build_schedule(self.optimizer, recipe.train)
        self.dtype = autocast_dtype(recipe.train.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.iteration = 0

    def step(self, image: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on image (b c d h w) and labels (b d h w); returns the loss, its parts, the gradient norm.

        Raises `NonFiniteError` naming the step and the tensor.
        """
        self.model.train()
        image, labels = image.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with autocast(self.dtype, self.device):
                output = self.model(image)
            loss, parts = self.loss(output, labels)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.optimizer.gradient_clip)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.iteration}: {error}") from error
        is_norm_due = not self.scaler.is_enabled()  # float16 overflows now and then, and the scaler skips that step
        if not loss.isfinite() or (is_norm_due and not norm.isfinite()):
            raise NonFiniteError(
                f"step {self.iteration}: loss {loss.item():g} or gradient norm {norm.item():g} not finite"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.iteration += 1
        values = {"loss": loss.detach(), **parts, "gradient_norm": norm.detach()}
        return dict(zip(values, torch.stack([v.float() for v in values.values()]).tolist(), strict=True))

    @torch.inference_mode()
    def validate(self, batches: Iterable[Batch]) -> float:
        """Mean over foreground labels of the Dice over all voxels of the patches; labels in none are left out."""
        self.model.eval()
        classes = self.model.num_classes
        joint = torch.zeros(classes * classes, dtype=torch.int64, device=self.device)
        for image, labels in batches:
            with autocast(self.dtype, self.device):
                output = self.model(image.to(self.device))
            predicted = output.log_probabilities().argmax(1)
            reference = labels.to(self.device)
            counted = (
                torch.ones_like(reference, dtype=torch.bool)
                if self.ignore_label is None
                else (reference != self.ignore_label)
            )
            joint += torch.bincount((reference * classes + predicted)[counted], minlength=classes * classes)
        table = joint.view(classes, classes).double()
        size = (table.sum(0) + table.sum(1))[1:]
        dice = 2 * table.diag()[1:] / size
        return float(dice[size > 0].mean()) if bool((size > 0).any()) else 0.0

    def rates(self) -> dict[str, float]:
        """Current learning rate of each group."""
        return {f"lr_{group['name']}": float(group["lr"]) for group in self.optimizer.param_groups}

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; plain tensors, numbers and containers."""
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"].cpu())
        if state["device_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"].cpu(), self.device)
