"""The mask embeddings of every output, read from the layers that a head names in `Head.mask_layers`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from maskmed_zoo.contracts import Head
from maskmed_zoo.errors import JointError

EXPECTED = "expected an nn.Conv3d of kernel 1, or a module that returns mask embeddings (b n c), once per output"


@contextmanager
def mask_embeddings(head: Head) -> Generator[list[Tensor]]:
    """A list for one forward pass of `head`: when the context ends, it holds one (n c) per output, the final one first.

    They are those of the first sample. The list stays empty if the head names no layers. Raises `JointError` if the
    layers are not as the contract has them.
    """
    layers = list(head.mask_layers())
    if layers and len(layers) != len(head.out_strides):
        _refuse(head, f"names {len(layers)} layers for {len(head.out_strides)} outputs", "name one per output")
    calls: dict[nn.Module, list[Any]] = {layer: [] for layer in layers if not _is_pointwise(layer)}

    def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
        calls[layer].append(output)

    found: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in calls:
            hooks.enter_context(layer.register_forward_hook(note))
        yield found
    for layer, outputs in calls.items():
        if len(outputs) != layers.count(layer) or not all(isinstance(x, Tensor) and x.ndim == 3 for x in outputs):
            shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in outputs)
            _refuse(head, f"names a {type(layer).__name__} that returned {shapes or 'nothing'}", EXPECTED)
    # The last call is that of the final output, which comes first.
    found += [calls[x].pop()[0] if x in calls else x.get_parameter("weight").detach().flatten(1) for x in layers]


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv3d) and set(layer.kernel_size) == {1}


def _refuse(head: Head, what: str, advice: str) -> None:
    raise JointError(f"{type(head).__name__}.mask_layers() {what}; {advice} (see maskmed_zoo.contracts.Head)")
