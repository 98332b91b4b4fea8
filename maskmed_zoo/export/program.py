"""The network alone as a program: an image in, log-probabilities out, plain tensors of PyTorch's own operations.

What this package registers or has PyTorch choose by device is lowered: deformable attention to its reference, one
`grid_sample` per level, and adaptive pooling to means and maxima along one axis after another. So the program runs
where this package is not, and every operation of it has a counterpart in ONNX.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from maskmed_zoo.adapters.taps import Taps
from maskmed_zoo.errors import ArgumentError, ZooError, first_line
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.ops import reference, registration
from maskmed_zoo.settings import Size3

IMAGE, OUTPUT = "image", "log_probabilities"
"""Names of the program's one input (b c d h w) and its one output (b k d h w), both float32."""
REMEDY = "export it as 'weights', which every network can be"
TOLERANCE, TOLERANCE_FLOAT16 = 1e-3, 5e-2
"""By how much probabilities of a program may be off, the second with weights rounded to 16 bits."""
OFF = 1e-3
"""Share of voxels that may be off by more: rounding can turn a voxel of a mask that attention looks through."""


class _Predict(nn.Module):
    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.predict(image)


def program_of(model: SegmentationModel, patch: Size3) -> ExportedProgram:
    """The network in evaluation mode as a program for images (b c d h w) of the size `patch`, b as many as one likes.

    Raises `ArgumentError` for a network that `torch.export` cannot follow.
    """
    image = torch.zeros(2, model.in_channels, *patch)
    sizes = ({0: Dim("batch", min=1)},)
    with refused("torch"):
        program = torch.export.export(_Predict(model.eval()), (image,), dynamic_shapes=sizes, strict=_is_tapped(model))
        lowered = program.run_decompositions(_lowered())
    for node in lowered.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the folders of this machine
    return lowered


@contextmanager
def refused(format: str) -> Generator[None]:
    """Whatever an exporter raises as an `ArgumentError` of one line; its advice to its developers is not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ZooError:
        raise
    except Exception as error:
        deepest = error
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        what = f"{type(deepest).__name__}: {first_line(deepest)}"
        raise ArgumentError(f"this network cannot be exported as '{format}' ({what}); {REMEDY}") from error


def check(
    run: Callable[[Tensor], Tensor], model: SegmentationModel, patch: Size3, name: str, *, is_rounded: bool = False
) -> None:
    """Raise `ZooError` unless a program says of windows of noise, one and two, what the network says."""
    generator = torch.Generator().manual_seed(0)
    tolerance = TOLERANCE_FLOAT16 if is_rounded else TOLERANCE
    for batch in (1, 2):
        image = torch.randn(batch, model.in_channels, *patch, generator=generator)
        with torch.inference_mode():
            differences = (run(image).exp() - model.predict(image).exp()).abs().amax(1)
        off = 1 - (differences <= tolerance).float().mean().item()  # NaN is off
        if off > OFF:
            raise ZooError(
                f"{name}: its probabilities differ from the network's by more than {tolerance:g} in {off:.1%} of the "
                f"voxels; {REMEDY}"
            )


def _is_tapped(model: nn.Module) -> bool:
    """Whether parts of the network are ended from within, which the exporter follows in its strict mode alone."""
    return any(isinstance(value, Taps) for module in model.modules() for value in vars(module).values())


def _lowered() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:  # pyright: ignore[reportPrivateUsage]
    """By operation, what it is made of."""
    return {
        registration.forward._opoverload: _attention,  # pyright: ignore[reportPrivateUsage]
        torch.ops.aten.adaptive_avg_pool3d.default: _means,
        torch.ops.aten.adaptive_max_pool3d.default: _largest,
    }


def _attention(values: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int]) -> Tensor:
    return reference.sample_levels(values, shapes, locations, weights)


def _means(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Adaptive average pooling (b c d h w): the mean over a box is that of means along its axes."""
    for axis, wanted in enumerate(output_size, start=2):
        size = x.shape[axis]
        if size != wanted:
            first, last = _boxes(size, wanted)
            row = torch.arange(size)[:, None]
            matrix = ((row >= first) & (row < last)).to(x.dtype) / (last - first)
            x = torch.matmul(x.movedim(axis, -1), matrix).movedim(-1, axis)
    return x


def _largest(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Adaptive maximum pooling (b c d h w), likewise; where the maxima lie nobody asks, so that is all zeros."""
    for axis, wanted in enumerate(output_size, start=2):
        size = x.shape[axis]
        if size != wanted:
            first, last = _boxes(size, wanted)
            longest = -(-size // wanted) + 1
            index = torch.minimum(first[:, None] + torch.arange(longest), last[:, None] - 1)
            x = x.index_select(axis, index.flatten()).unflatten(axis, (wanted, longest)).amax(axis + 1)
    return x, torch.zeros_like(x, dtype=torch.int64)


def _boxes(size: int, wanted: int) -> tuple[Tensor, Tensor]:
    """First voxels of the `wanted` parts of an axis, and those behind their last ones."""
    index = torch.arange(wanted)
    return index * size // wanted, ((index + 1) * size + wanted - 1) // wanted
