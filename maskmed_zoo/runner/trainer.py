"""One training run in memory: model, loss, optimiser, schedule; steps, validation and the state to continue from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from maskmed_zoo.build import model_of
from maskmed_zoo.data.patches import Patch
from maskmed_zoo.device import autocast, autocast_dtype
from maskmed_zoo.errors import NonFiniteError
from maskmed_zoo.model import build_loss
from maskmed_zoo.network_size import moved
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.optimizer import build_optimizer, build_schedule


class Trainer:
    """Everything that changes while training."""

    def __init__(self, recipe: Recipe, device: torch.device, say: Callable[[str], None] | None = None) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.train.seed)
        self.model = moved(model_of(recipe), device)
        self.model.freeze(recipe.train.freeze)
        self.ignore_label = recipe.labels.ignore
        classes = self.model.num_classes
        self.loss = build_loss(recipe.model, num_classes=classes, ignore_label=self.ignore_label).to(device)
        self.optimizer = build_optimizer(self.model, recipe.train.optimizer)
        self.schedule = build_schedule(self.optimizer, recipe.train)
        self.dtype = autocast_dtype(recipe.train.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.iteration, self.skipped_in_a_row = 0, 0
        self.say = say or (lambda _: None)

    def step(
        self, image: Tensor, labels: Tensor, annotated: Tensor | None = None, instances: Tensor | None = None
    ) -> dict[str, float]:
        """One optimiser step on image (b c d h w) and labels (b d h w); returns the loss, its parts, the gradient norm.

        `annotated` and `instances` are those of `Loss`. A step whose costs, loss or gradients are not finite changes
        nothing but the schedule, is reported and skipped, and returns nothing; raises `NonFiniteError`, naming the step
        and the tensor, after `max_skipped_steps` such steps in a row.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        tensors = [None if t is None else t.to(self.device, non_blocking=True) for t in (annotated, instances)]
        try:
            values = self._update(image.to(self.device, non_blocking=True), labels.to(self.device), *tensors)
            self.skipped_in_a_row = 0
        except NonFiniteError as error:
            self.skipped_in_a_row += 1
            report = f"step {self.iteration}: {error}"
            if self.skipped_in_a_row > self.recipe.train.max_skipped_steps:
                raise NonFiniteError(f"{report}; {self.skipped_in_a_row} such steps in a row") from error
            self.say(f"{report}; step skipped")
            values = {}
        if self.iteration:
            self.schedule.step()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # if it was skipped: the schedule goes on nevertheless
                self.schedule.step()
        self.iteration += 1
        if not values:
            return {}
        return dict(zip(values, torch.stack([v.float() for v in values.values()]).tolist(), strict=True))

    def _update(
        self, image: Tensor, labels: Tensor, annotated: Tensor | None, instances: Tensor | None
    ) -> dict[str, Tensor]:
        with autocast(self.dtype, self.device):
            output = self.model(image)
        loss, parts = self.loss(output, labels, annotated=annotated, instances=instances)
        if not loss.isfinite():
            raise NonFiniteError(f"loss is {loss.item():g}")
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.optimizer.gradient_clip)
        is_norm_due = not self.scaler.is_enabled()  # float16 overflows now and then, and the scaler skips that step
        if is_norm_due and not norm.isfinite():
            raise NonFiniteError(f"gradient norm is {norm.item():g}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": loss.detach(), **parts, "gradient_norm": norm.detach()}

    @torch.inference_mode()
    def validate(self, batches: Iterable[Patch]) -> float:
        """Mean over foreground labels of the Dice over all voxels of the patches; labels in none are left out.

        A label counts in the patches alone in which it was annotated, so that to find it elsewhere is no mistake.
        """
        self.model.eval()
        classes = self.model.num_classes
        shared, size = torch.zeros(2, classes, dtype=torch.int64, device=self.device)
        for batch in batches:
            with autocast(self.dtype, self.device):
                output = self.model(batch["image"].to(self.device))
            predicted = output.log_probabilities().argmax(1)
            reference = batch["labels"].to(self.device)
            annotated = batch["annotated"].to(self.device)
            for sample in range(len(reference)):
                counted = reference[sample] != (-1 if self.ignore_label is None else self.ignore_label)
                pairs = (reference[sample] * classes + predicted[sample])[counted]
                table = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
                shared += table.diag() * annotated[sample]
                size += (table.sum(0) + table.sum(1)) * annotated[sample]
        dice = [2 * int(s) / int(n) for s, n in zip(shared[1:], size[1:], strict=True) if n > 0]
        return fmean(dice) if dice else 0.0

    def rates(self) -> dict[str, float]:
        """Current learning rate of each group."""
        return {f"lr_{group['name']}": float(group["lr"]) for group in self.optimizer.param_groups}

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; plain tensors, numbers and containers."""
        return {
            "iteration": self.iteration,
            "skipped_in_a_row": self.skipped_in_a_row,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; rates and other settings are the recipe's."""
        self.iteration, self.skipped_in_a_row = state["iteration"], state["skipped_in_a_row"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]["state"]})
        factors = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        rates = [base * factor(self.iteration) for base, factor in factors]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        place = {"last_epoch": self.iteration, "_step_count": self.iteration + 1, "_last_lr": rates}
        self.schedule.load_state_dict(self.schedule.state_dict() | place)
        if self.scaler.is_enabled() and state["scaler"]:
            found = {key: state["scaler"][key] for key in ("scale", "_growth_tracker")}
            self.scaler.load_state_dict(self.scaler.state_dict() | found)
        torch.set_rng_state(state["rng"].cpu())
        if state["device_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"].cpu(), self.device)
