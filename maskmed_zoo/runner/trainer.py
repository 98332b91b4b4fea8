"""One training run in memory: model, loss, optimiser, schedule; steps, validation and the state to continue from.

Batches are divided among processes and into pieces as `divided` says; all that is returned is of the whole batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskmed_zoo import distributed
from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.data.patches import Patch
from maskmed_zoo.device import autocast, autocast_dtype
from maskmed_zoo.errors import NonFiniteError
from maskmed_zoo.model import SegmentationModel, build_loss
from maskmed_zoo.network_size import moved
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.average import Average
from maskmed_zoo.runner.divided import Piece, check_divisible, in_pieces, number_of_pieces, seed_piece
from maskmed_zoo.runner.optimizer import build_optimizer, build_schedule, load_moments
from maskmed_zoo.runner.switches import compiler_errors, memory_format, switch_on


class Validation(NamedTuple):
    """What a validation on patches found.

    `by_label`: the Dice of each foreground label, None for one that no patch holds, which counts in `dice`, the mean,
    where it was predicted; `query_classes`: for how many classes queries answer, None of a head without.
    """

    dice: float
    by_label: Mapping[str, float | None]
    query_classes: int | None


class Trainer:
    """Everything that changes while training."""

    def __init__(self, recipe: Recipe, device: torch.device, say: Callable[[str], None] | None = None) -> None:
        self.recipe, self.device, self.say = recipe, device, say or (lambda _: None)
        torch.manual_seed(recipe.train.seed)
        self.model = moved(model_of(recipe), device)
        self.model.freeze(recipe.train.freeze)
        self.ignore_label = recipe.labels.ignore
        classes = self.model.num_classes
        self.loss = build_loss(recipe.model, num_classes=classes, ignore_label=self.ignore_label).to(device)
        check_divisible(recipe, self.model, self.loss)
        switch_on(self.model, recipe.train, device)
        if recipe.train.compile:
            self.say("train.compile: the first step and the first validation compile the network, which takes minutes")
        self.average = None if recipe.train.ema is None else Average(self.model, recipe.train.ema)
        self.optimizer = build_optimizer(self.model, recipe.train.optimizer)
        self.schedule = build_schedule(self.optimizer, recipe.train)
        self.dtype = autocast_dtype(recipe.train.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.iteration, self.skipped_in_a_row = 0, 0

    @property
    def kept(self) -> SegmentationModel:
        """The network that is validated and saved: with averaged weights where `train.ema` asks for them."""
        return self.average.model if self.average is not None and self.average.updates else self.model

    def step(
        self, image: Tensor, labels: Tensor, annotated: Tensor | None = None, instances: Tensor | None = None
    ) -> dict[str, float]:
        """One optimiser step on image (b c d h w) and labels (b d h w); returns the loss, its parts, the gradient norm.

        All are this process's share of the batch, `annotated` and `instances` those of `Loss`. A step whose costs, loss
        or gradients are not finite changes nothing but the schedule, is reported and skipped, and returns nothing;
        raises `NonFiniteError`, naming the step and the tensor, after `max_skipped_steps` such steps in a row.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            values = self._update(image, labels, annotated, instances)
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
        parts = self.gradients(image, labels, annotated, instances)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.optimizer.gradient_clip)
        is_norm_due = not self.scaler.is_enabled()  # float16 overflows now and then, and the scaler skips that step
        if is_norm_due and not norm.isfinite():
            raise NonFiniteError(f"gradient norm is {norm.item():g}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None and norm.isfinite():  # else the scaler has skipped the step
            self.average.update(self.model)
        return {**parts, "gradient_norm": norm.detach()}

    def gradients(
        self, image: Tensor, labels: Tensor, annotated: Tensor | None = None, instances: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Make the gradients of a batch, of which this is the process's share; returns loss and parts of the whole.

        They are scaled as by `scaler`. Raises `NonFiniteError` in all processes if costs or loss are not finite in one.
        """
        tensors = [None if x is None else x.to(self.device, non_blocking=True) for x in (labels, annotated, instances)]
        pieces = in_pieces(image, *tensors, pieces=self.recipe.train.accumulate)
        counts: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        problem = ""
        for number, (image_, labels_, annotated_, instances_) in enumerate(pieces):
            seed_piece(self.recipe.train.seed, self.iteration, number)
            with autocast(self.dtype, self.device):
                output = self._output(self.model, image_, self._prior(image_, labels_, annotated_))
            if not number and number_of_pieces(self.recipe) > 1:
                counts = {"counts": self._counts(output, pieces)}
            try:
                loss, parts = self.loss(output, labels_, annotated=annotated_, instances=instances_, **counts)
                if not loss.isfinite():
                    raise NonFiniteError(f"loss is {loss.item():g}")
            except NonFiniteError as error:
                problem = str(error)
                break
            with compiler_errors():
                self.scaler.scale(loss).backward()
            for name, value in ({"loss": loss.detach()} | parts).items():
                sums[name] = sums[name] + value if name in sums else value
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if distributed.add_up_gradients(parameters, failed=bool(problem)):
            raise NonFiniteError(next(filter(None, distributed.gathered(problem))))
        if distributed.size() == 1:
            return sums
        return dict(zip(sums, distributed.add_up(torch.stack([*sums.values()])), strict=True))

    def _prior(self, image: Tensor, labels: Tensor, annotated: Tensor | None) -> Tensor | None:
        size = self.model.decoder.out_spec.sizes(image.shape[2:])[-1]
        share = 1 - self.iteration / self.recipe.train.iterations
        return self.loss.prior(labels, size, annotated=annotated, share=share)

    def _output(self, model: SegmentationModel, image: Tensor, prior: Tensor | None = None) -> HeadOutput:
        with compiler_errors():
            layout = memory_format(self.recipe.train)
            given = () if prior is None else (prior,)
            return model(image.to(self.device, non_blocking=True, memory_format=layout), *given)

    def _counts(self, output: HeadOutput, pieces: Sequence[Piece]) -> Tensor:
        """What the loss counts in the whole batch; `output` is that of one piece, and they all have its size."""
        of_pieces = [self.loss.counts(output, y, annotated=a, instances=i) for _, y, a, i in pieces]
        return distributed.add_up(torch.stack(of_pieces).sum(0))

    @torch.inference_mode()
    def validate(self, batches: Iterable[Patch]) -> Validation:
        """Dice of each foreground label over all voxels of the patches, and their mean; labels in none are left out.

        The patches are those of all processes. A label counts in the patches alone in which it was annotated, so that
        to find it elsewhere is no mistake.
        """
        model = self.kept.eval()
        classes = model.num_classes
        counts = torch.zeros(4, classes, dtype=torch.int64, device=self.device)
        shared, held, size, chosen = counts
        has_queries = False
        for batch in batches:
            reference, annotated = batch["labels"].to(self.device), batch["annotated"].to(self.device)
            said: list[Tensor] = []
            for piece in batch["image"].split(len(reference) // self.recipe.train.accumulate):
                with autocast(self.dtype, self.device):
                    output = self._output(model, piece)
                said.append(output.log_probabilities().argmax(1))
                answers = _answers(output)
                if answers is not None:
                    has_queries = True
                    chosen += torch.bincount(answers, minlength=classes + 1)[:classes]
            predicted = torch.cat(said)
            for sample in range(len(reference)):
                counted = reference[sample] != (-1 if self.ignore_label is None else self.ignore_label)
                pairs = (reference[sample] * classes + predicted[sample])[counted]
                table = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
                shared += table.diag() * annotated[sample]
                held += table.sum(1) * annotated[sample]
                size += (table.sum(0) + table.sum(1)) * annotated[sample]
        counts = distributed.add_up(counts)
        found = [row.tolist() for row in counts]
        dice = [2 * s / n if n else None for s, n in zip(found[0], found[2], strict=True)]
        names = self.recipe.labels.foreground
        return Validation(
            dice=fmean(known) if (known := [d for d in dice[1:] if d is not None]) else 0.0,
            by_label={name: dice[value] if found[1][value] else None for name, value in names.items()},
            query_classes=sum(n > 0 for n in found[3]) if has_queries else None,
        )

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
            "ema": None if self.average is None else self.average.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; rates and other settings are the recipe's."""
        self.iteration, self.skipped_in_a_row = state["iteration"], state["skipped_in_a_row"]
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state(state["ema"])
        load_moments(self.optimizer, state["optimizer"]["state"])
        factors = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        rates = [base * factor(self.iteration) for base, factor in factors]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        place = {"last_epoch": self.iteration, "_step_count": self.iteration + 1, "_last_lr": rates}
        self.schedule.load_state_dict(self.schedule.state_dict() | place)
        if self.scaler.is_enabled() and state["scaler"]:
            found = {key: state["scaler"][key] for key in ("scale", "_growth_tracker")}
            self.scaler.load_state_dict(self.scaler.state_dict() | found)


def _answers(output: HeadOutput) -> Tensor | None:
    """The likeliest class of every query of every sample, "no object" the last one; None of a head without queries."""
    final = output.stages[0]
    return None if final.class_logits is None or final.logits is not None else final.class_logits.argmax(-1).flatten()
