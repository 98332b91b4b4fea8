"""The memory of a training step, counted without taking it: the step runs on the meta device, which holds no numbers.

Idea: forward and backward pass are run in full there, every tensor's storage is counted while it lives, and the highest
sum is the need of the network: activations kept for the gradient, gradients, and what an operation needs beside them.
Losses look at numbers, which meta tensors have not, so the loss runs on an output of the smallest patch and its need is
scaled with the voxels. To that come weights, gradients and the optimizer's state, and the copies in which convolutions
work, as much as the largest one reads and writes.
Deviations from a real step: the CUDA context and what an allocator keeps in reserve are not counted; with mixed
precision every activation is taken to have 16 bits; on the CPU, where activations overwrite what norms give, a step
needs less.
"""

from __future__ import annotations

import weakref
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from maskmed_zoo.contracts import HeadOutput, Loss, StageOutput
from maskmed_zoo.model import SegmentationModel, build_loss, count_parameters
from maskmed_zoo.recipe.schema import Recipe
from maskmed_zoo.settings import Size3

_STATES = {"sgd": 1, "adamw": 2}
"""Numbers that an optimizer keeps per weight."""
_SIDE = 24
"""Voxels of the patch on which a loss is measured, along each axis, if the strides are smaller than half of it."""
_MAPS = ("logits", "masks", "class_logits", "queries")


class StepMemory:
    """Counts steps of one network; `narrow`: 16-bit activations. The model lies on the meta device, and is changed."""

    def __init__(self, model: SegmentationModel, recipe: Recipe, *, narrow: bool) -> None:
        self.model, self.narrow = model.train(), narrow
        self.model.checkpointed = recipe.train.checkpointing
        self.loss = build_loss(recipe.model, num_classes=model.num_classes, ignore_label=None)
        self.weights = count_parameters(model.parameters())
        optimizer = recipe.train.optimizer
        states = _STATES[optimizer.kind] if optimizer.kind == "adamw" or optimizer.momentum else 0
        self.held = 4 * self.weights * (1 + states + (recipe.train.ema is not None))
        if narrow:
            self.model.to(torch.bfloat16)
        self._loss: tuple[float, float] | None = None

    def bytes(self, patch: Size3, batch: int) -> int:
        """Of a training step on patches (z, y, x); `JointError` where the network does not take them."""
        _, live = self._run(patch, batch)
        images = 4 * batch * prod(patch) * (self.model.in_channels + 1)
        constant, slope = self._loss_line()
        at_loss = live.kept + int(constant + slope * batch * prod(patch))
        gradients = 4 * self.weights
        # Mixed precision keeps weights twice; of gradients, all in 32 bits, the passes have counted 16.
        narrow = gradients if self.narrow else 0
        passes = images + live.workspace + narrow + max(at_loss + gradients, live.peak)
        update = 2 * gradients  # as much again for the new weights
        return self.held + max(passes, update)

    def _run(self, patch: Size3, batch: int, *, is_training: bool = True) -> tuple[HeadOutput, Live]:
        self.model.zero_grad(set_to_none=True)
        with Live() as live, _Fused():
            weight = next(self.model.parameters())
            image = torch.empty(batch, self.model.in_channels, *patch, device="meta", dtype=weight.dtype)
            output = self.model(image)
            live.kept = live.now
            if is_training:
                maps = [x for stage in output.stages for x in _maps(stage).values() if x.requires_grad]
                torch.autograd.backward(maps, [torch.empty_like(x) for x in maps])
        return output, live

    def _loss_line(self) -> tuple[float, float]:
        """Bytes that the loss needs whatever the size, and for each voxel: a line through two small sizes."""
        if self._loss is None:
            z, y, x = (max(2 * s, -(-_SIDE // s) * s) for s in self.model.encoder.out_spec.total_stride)
            one, two = (self._measured_loss(patch) for patch in ((z, y, x), (2 * z, y, x)))
            self._loss = max(0, 2 * one - two), max(0, two - one) / (z * y * x)
        return self._loss

    def _measured_loss(self, patch: Size3) -> int:
        """Bytes that the loss needs for one patch, on random numbers on the CPU."""
        output, _ = self._run(patch, 1, is_training=False)
        generator = torch.Generator().manual_seed(0)
        real = HeadOutput([StageOutput(**_random(stage, generator)) for stage in output.stages])
        shape = real.stages[0].spatial.shape[2:]
        labels = torch.randint(0, self.model.num_classes, (1, *shape), generator=generator)
        return _loss_bytes(self.loss, real, labels)


def _loss_bytes(loss: Loss, output: HeadOutput, labels: Tensor) -> int:
    with Live() as live:
        value, _ = loss(output, labels)
        if value.requires_grad:
            value.backward()
    return live.peak


def _maps(stage: StageOutput) -> dict[str, Tensor]:
    return {name: x for name in _MAPS if (x := getattr(stage, name)) is not None}


def _random(stage: StageOutput, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: torch.randn(x.shape, generator=generator).to(x.dtype).requires_grad_(x.requires_grad)
        for name, x in _maps(stage).items()
    }


class Live(TorchDispatchMode):
    """Counts the bytes of what is made inside, while it lives: `now`, at most (`peak`), and in convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.kept = self.workspace = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._note(tensor)
        if func in _CONVOLUTIONS:
            maps = [*_tensors(args[:2]), *_tensors(result)]
            self.workspace = max(self.workspace, sum(x.nbytes for x in maps))
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = True
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def _tensors(result: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _Fused(TorchFunctionMode):
    """Attention as the kernels of CPUs and GPUs compute it, without its matrix; meta has the textbook's only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            mask = (*args, None)[3] if len(args) > 3 else (kwargs or {}).get("attn_mask")
            if mask is None or not mask.requires_grad:
                return _FusedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps: queries, keys, values, the result and one number per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # pyright: ignore
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1]))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])
