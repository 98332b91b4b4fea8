"""A trainer for nnU-Net v2: its plan, data, augmentation and inference; neck, head, loss and rates of a recipe.

`maskmed-zoo nnunet install` writes a subclass that names its recipe into a folder where nnU-Net looks for trainers
(`nnUNet_extTrainer`), so nnU-Net itself stays as it was installed. This module is imported by nobody else.

From the recipe: `model.neck`, `model.head`, `model.loss` and `train` but `batch_size`, `accumulate`, `seed`,
`save_minutes`, `validate_every`, `ema` and `patience`, which mean nothing here.
From nnU-Net: all else, mirroring over every axis included. What differs from its default trainer:

* The network gives log-probabilities, whose softmax are the probabilities, so that nnU-Net's averages over windows,
  mirrored copies and folds are (geometric) means of probabilities. For a loss it gives the `HeadOutput`.
* nnU-Net's poly schedule writes one rate into all groups, which for this network is the collapsing 1 : 1 setting of
  MaskMed Table 5; here each group keeps its own base rate, with warm-up, moved once per step.
* bfloat16 where the device has it (no gradient scaler); losses and matching are in float32.
* `checkpoint_latest` is written at least twenty times per training run, and `--c` refuses another recipe.
* No torch.compile, no training on several devices; regions are refused, the ignore label is not.
"""

# nnU-Net is optional and has no types.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.device import autocast, autocast_dtype
from maskmed_zoo.errors import CheckpointError, JointError, NonFiniteError
from maskmed_zoo.files import write_text
from maskmed_zoo.interop.nnunet_network import GroupSchedule, PluginNetwork
from maskmed_zoo.model import build_loss
from maskmed_zoo.recipe import Recipe, dump_recipe, load_recipe
from maskmed_zoo.recipe.difference import first_difference
from maskmed_zoo.recipe.nnunet_plan import recipe_of_plan
from maskmed_zoo.runner.optimizer import build_optimizer
from maskmed_zoo.weights.card import RECIPE

_Base: Any = nnUNetTrainer


@cache
def _read(path: Path) -> Recipe:
    return load_recipe(path)


class MaskMedTrainer(_Base):
    """Base of the trainers that `maskmed-zoo nnunet install` writes; those set `recipe_file`."""

    recipe_file: ClassVar[Path]

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            raise JointError(f"{type(self).__name__} trains on one device; leave -num_gpus out")
        recipe = _read(self.recipe_file)
        self.plan_recipe = recipe_of_plan(recipe, self.configuration_manager.configuration, dataset=dataset_json)
        config = self.train_recipe = self.plan_recipe.train
        if getattr(self.plan_recipe.model.loss, "prior_noise", 0):
            raise JointError(f"{type(self).__name__} gives no priors; set model.loss.prior_noise to 0")
        self.num_epochs, self.num_iterations_per_epoch = config.epochs, config.iterations_per_epoch
        self.num_val_iterations_per_epoch = config.validation_iterations or 1  # nnU-Net picks its best by them
        self.save_every = min(50, max(1, config.epochs // 20))
        self.initial_lr, self.weight_decay = config.optimizer.lr, config.optimizer.weight_decay
        self.amp = autocast_dtype(config.amp, self.device)
        if self.amp != torch.float16:
            self.grad_scaler = None
        self.skipped_in_a_row = 0

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The recipe's network on the plan's levels; called for training and by `nnUNetv2_predict`."""
        del plans_manager
        recipe = recipe_of_plan(_read(cls.recipe_file), configuration_manager.configuration)
        model = model_of(recipe, in_channels=num_input_channels, num_classes=num_output_channels)
        model.encoder.out_spec.check_patch(recipe.data.patch_size)
        model.freeze(recipe.train.freeze)
        return PluginNetwork(model, enable_deep_supervision)

    def _do_i_compile(self) -> bool:
        return False

    def _get_deep_supervision_scales(self) -> None:
        """None: the loss takes labels at full resolution and makes coarser ones itself."""

    def _build_loss(self) -> nn.Module:
        classes, ignore = self.label_manager.num_segmentation_heads, self.label_manager.ignore_label
        return build_loss(self.plan_recipe.model, num_classes=classes, ignore_label=ignore).to(self.device)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, GroupSchedule]:
        """Two groups at their own base rates; the schedule spans this trainer's epochs."""
        optimizer = build_optimizer(self.network.model, self.train_recipe.optimizer)
        per_epoch = int(self.num_iterations_per_epoch)
        return optimizer, GroupSchedule(optimizer, self.train_recipe, per_epoch, per_epoch * int(self.num_epochs))

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Every stage, or the final one alone."""
        self.network.deep_supervision = enabled

    def on_train_start(self) -> None:
        """Also write the recipe of the whole network beside the checkpoints, or compare with the one there."""
        super().on_train_start()
        file = Path(self.output_folder, RECIPE)
        if self.current_epoch and file.exists():
            before, now = (recipe.model_dump(mode="json") for recipe in (load_recipe(file), self.plan_recipe))
            difference = first_difference(before, now)
            if difference:
                raise CheckpointError(
                    f"{file}: the training run began with another recipe ({difference}); restore it or start anew"
                )
        write_text(file, dump_recipe(self.plan_recipe))

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's drawing needs a package that no longer works; `maskmed-zoo build` shows the network."""

    def on_train_epoch_start(self) -> None:
        """Also log the rate of every group."""
        super().on_train_epoch_start()
        rates = ", ".join(f"{group['name']} {group['lr']:.3g}" for group in self.optimizer.param_groups)
        self.print_to_log_file(f"Learning rates: {rates}")

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One optimiser step; one with costs, loss or gradients that are not finite is reported and skipped.

        Raises `NonFiniteError` after `train.max_skipped_steps` such steps in a row.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = None
        try:
            loss = self._loss_of(batch)[0]
            self._update(loss)
            self.skipped_in_a_row = 0
        except NonFiniteError as error:
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > self.train_recipe.max_skipped_steps:
                raise
            self.print_to_log_file(f"step {self.lr_scheduler.iteration}: {error}; step skipped")
            return {}
        finally:
            self.lr_scheduler.advance()
        return {"loss": loss.detach().cpu().numpy()}

    def _update(self, loss: Tensor) -> None:
        scaler = self.grad_scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.train_recipe.optimizer.gradient_clip)
        if scaler is None and not norm.isfinite():  # float16 overflows now and then, and the scaler skips that step
            raise NonFiniteError(f"gradient norm is {norm.item():g}")
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _loss_of(self, batch: dict[str, Any]) -> tuple[Tensor, HeadOutput, Tensor]:
        """Loss, output and labels (b d h w) of a batch; raises `NonFiniteError`."""
        image = batch["data"].to(self.device, non_blocking=True)
        labels = batch["target"].to(self.device, non_blocking=True)[:, 0]
        with autocast(self.amp, self.device):
            output = self.network(image, for_loss=True)
        loss, _ = self.loss(output, labels)
        if not loss.isfinite():
            raise NonFiniteError(f"loss is {loss.item():g}")
        return loss, output, labels

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Without the steps that were skipped."""
        super().on_train_epoch_end([out for out in train_outputs if out] or [{"loss": np.array(np.nan)}])

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Loss, and hard true and false positives and negatives per foreground label, over all voxels of the batch."""
        loss, output, labels = self._loss_of(batch)
        classes = self.label_manager.num_segmentation_heads
        predicted = output.log_probabilities().argmax(1)
        counted = (labels >= 0) & (labels < classes)
        pairs = labels[counted].long() * classes + predicted[counted]
        table = torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu().numpy()
        hits = table.diagonal()
        counts = {"tp_hard": hits, "fp_hard": table.sum(0) - hits, "fn_hard": table.sum(1) - hits}
        return {"loss": loss.cpu().numpy()} | {name: count[1:].astype(np.float64) for name, count in counts.items()}
