"""Settings of `train` that change what a step costs in time and memory, and its numbers by no more than rounding.

`channels_last`, `checkpointing` and `compile` are set on the network; `cudnn_benchmark` is one of the process. A run
may go on with others of them. docs/benchmarks/switches.py measures what they are worth.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  # what all batch norms are

from maskmed_zoo.errors import JointError, UserError, first_line
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe.schema import TrainRecipe

BACKEND = "inductor"
"""Of `torch.compile`; the tests take one that needs no C++ compiler too."""
_REMEDY = (
    "install a C++ compiler such as g++ (for CUDA Triton and a C compiler), delete PyTorch's cache of compiled code "
    "({cache}) if something in it is damaged, or set train.compile to false"
)


def switch_on(model: SegmentationModel, config: TrainRecipe, device: torch.device) -> None:
    """Change a network on its device, with its frozen parts, as the settings say.

    Raises `JointError` for batch norm in a checkpointed part, `UserError` where nothing can be compiled.
    """
    if config.channels_last:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 5:  # others have no such order, some of three and four axes among them
                tensor.data = tensor.data.contiguous(memory_format=memory_format(config))
    model.checkpointed = config.checkpointing
    for part in config.checkpointing:
        _check_statistics(model, part)
    if config.compile:
        with compiler_errors():
            torch.compile(lambda x: x + 1, backend=BACKEND)(torch.zeros(2, device=device))  # before any case is read
        # In place, so that parameters keep their names; all patches have one size, and none is to be taken for another.
        model.compile(backend=BACKEND, dynamic=False)


def memory_format(config: TrainRecipe) -> torch.memory_format:
    """How images lie in memory."""
    return torch.channels_last_3d if config.channels_last else torch.preserve_format


@contextmanager
def compiler_errors() -> Generator[None]:
    """What the compiler says at length as a `UserError` of one line; costs nothing where it says nothing."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # a second, for those who compile nothing
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        if not isinstance(error, TorchDynamoException):
            raise
        reason, remedy = first_line(getattr(error, "inner_exception", error)), _REMEDY.format(cache=cache_dir())
        raise UserError(f"train.compile: the network cannot be compiled here ({reason}); {remedy}") from error


@contextmanager
def cudnn_benchmark(config: TrainRecipe, device: torch.device) -> Generator[None]:
    """Inside, cuDNN times its algorithms for convolutions of a new size and keeps the fastest, if it is asked to."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (config.cudnn_benchmark and device.type == "cuda")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _check_statistics(model: SegmentationModel, part: str) -> None:
    modules = model.parts()[part].named_modules()
    name = next((name for name, m in modules if isinstance(m, _BatchNorm) and m.training), None)
    if name is not None:
        raise JointError(
            f"train.checkpointing: the {part} has batch norm ('{name}'), whose statistics would be counted twice in a "
            f"step; leave {part} out, freeze it, or choose one without"
        )
