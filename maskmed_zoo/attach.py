"""A head of this package in a finished network of somebody else: `maskmed_zoo.attach_head`.

The network is watched in one run on a small patch (`adapters.probe`). Its output convolution is taken out; what went
into it, and the decoder's last features at every coarser resolution but the bottleneck's, go to the new head (MaskMed
§3.1 gives the head every decoder stage). Layers without a part in those, such as heads for deep supervision, are taken
out too, so that every parameter that is left is trained. All others stay as they are, values, names and hooks.

Deviation from a recipe's model: where the finest features are coarser than the image, the final masks are resized to
it, which is what resizing the features would give, because masks are linear in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from maskmed_zoo import network_size, registry
from maskmed_zoo.adapters.probe import (
    CONVOLUTIONS,
    Outputs,
    Trace,
    cut,
    last_maps,
    module_maps,
    output_layer,
    replace_module,
    trace,
    used_parameters,
)
from maskmed_zoo.adapters.taps import Taps
from maskmed_zoo.contracts import Head, HeadOutput, ParameterGroup, StageOutput, resize
from maskmed_zoo.errors import ArgumentError, JointError, RegistryError, nearest
from maskmed_zoo.settings import Size3, Spacing3


class TakenOut(nn.Identity):
    """Stands where the output convolution was, whose weights a file of the whole network still has."""

    is_taken_out = True


class AttachedModel(nn.Module):
    """`network` up to the features the head reads, and the head; made by `attach_head`.

    With `frozen` the network's parameters get no gradient and it stays in evaluation mode, whatever `train` says.
    """

    def __init__(self, network: nn.Module, head: Head, taps: Taps, *, num_classes: int, frozen: bool) -> None:
        super().__init__()
        self.network, self.head, self.taps = network, head, taps
        self.num_classes, self.frozen = num_classes, frozen
        if frozen:
            self.network.requires_grad_(False).eval()

    def forward(self, image: Tensor, *args: Any, **kwargs: Any) -> HeadOutput:
        """Image (b c d h w), and what else the network takes, to the head's output at every stage."""
        output = self.head(self.taps.run(self.network, image, *args, **kwargs))
        return HeadOutput([_at_size(output.stages[0], image.shape[2:]), *output.stages[1:]])

    def predict(self, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Image (b c d h w) to float32 log-probabilities (b k d h w), normalized over k and floored before the log."""
        return self(image, *args, **kwargs).log_probabilities()

    def parameter_groups(self) -> dict[ParameterGroup, list[nn.Parameter]]:
        """Trainable parameters by learning-rate group (MaskMed §4): those of the network are "cnn"."""
        groups: dict[ParameterGroup, list[nn.Parameter]] = {"cnn": [], "transformer": []}
        groups["cnn"] += [p for p in self.network.parameters() if p.requires_grad]
        groups[self.head.parameter_group] += [p for p in self.head.parameters() if p.requires_grad]
        return groups

    def train(self, mode: bool = True) -> Self:
        """As usual, but a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self


def attach_head(
    network: nn.Module,
    head: str | Mapping[str, Any],
    num_classes: int,
    *,
    in_channels: int | None,
    patch_size: Size3,
    spacing: Spacing3,
    stages: Sequence[str] | None,
    freeze: Literal["body"] | None,
) -> AttachedModel:
    """See `maskmed_zoo.attach_head`."""
    if freeze not in (None, "body"):
        raise ArgumentError(f"freeze is 'body' or None, got {freeze!r}")
    if num_classes < 1:
        raise ArgumentError(f"num_classes is the number of labels, background counted, got {num_classes}")
    head_cls, config = _head_settings(head)  # before anything is taken out of the network
    channels = in_channels or _in_channels(network)
    run = trace(network, channels, patch_size)
    names = _found(network, run) if stages is None else module_maps(run, stages, type(network).__name__)
    taps = Taps(network, names)
    maps = trace(Outputs(network, taps), channels, patch_size)
    spec = maps.spec(maps.outputs)
    make = partial(cast(Any, head_cls), in_spec=spec, num_classes=num_classes, config=config, spacing=spacing)
    made: Head = network_size.made(make)
    cut(network, used_parameters(maps), names)
    trace(Outputs(network, taps), channels, patch_size)  # still runs, and leaves nothing behind in the network
    device = next((p.device for p in network.parameters()), torch.get_default_device())
    made.to(device, maps.outputs[0].dtype)
    return AttachedModel(network, made, taps, num_classes=num_classes, frozen=freeze == "body")


def _in_channels(network: nn.Module) -> int:
    first = next((m for m in network.modules() if isinstance(m, CONVOLUTIONS)), None)
    if first is None:
        flat = any(isinstance(m, nn.Conv2d) for m in network.modules())
        what = "is a 2-D network" if flat else "has no 3-D convolution"
        raise JointError(f"{type(network).__name__} {what}; attach_head wants one that maps (b c d h w) to (b k d h w)")
    return first.in_channels


def _found(network: nn.Module, run: Trace) -> list[str]:
    """The output convolution, made an identity, and the modules that give the coarser stages."""
    index = output_layer(run)
    if index is None:
        raise JointError(
            f"found no output convolution in {type(network).__name__}: its output depends on none; name the modules "
            f"whose outputs the head is to read, stages=[...]"
        )
    layer = run.calls[index]
    finest = run.strides(layer.taken)
    if finest is None or layer.name not in run.once():
        raise JointError(
            f"the output convolution '{layer.name}' of {type(network).__name__} reads no map whose size divides the "
            f"patch {run.patch}, or is called more than once; give another patch_size, or stages=[...]"
        )
    maps = last_maps(run, before=index, leading_to=[layer.source])
    coarser = [call.name for call in maps if _is_coarser(run.strides(call.given), finest)]
    replace_module(network, layer.module, TakenOut())
    return [layer.name, *coarser[:-1]]


def _is_coarser(stride: Size3 | None, than: Size3) -> bool:
    return stride is not None and stride != than and all(a >= b for a, b in zip(stride, than, strict=True))


def _head_settings(head: str | Mapping[str, Any]) -> tuple[type[Head], Any]:
    settings = {"kind": head} if isinstance(head, str) else dict(head)
    kind = str(settings.get("kind"))
    cls = registry.component(kind, "head")
    if not issubclass(cls, Head):
        raise RegistryError(f"'{kind}' is no head")
    try:
        return cls, cls.Config.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where, said = ".".join(map(str, problem["loc"])) or kind, problem["msg"]
        if problem["type"] == "extra_forbidden":
            known = sorted(cls.Config.model_fields)
            said = "unknown key" + (nearest(where, known) or f" (known: {', '.join(known)})")
        raise JointError(f"head '{kind}': {where}: {said}") from error


def _at_size(stage: StageOutput, size: Sequence[int]) -> StageOutput:
    """A stage with its maps at another size; the stage itself where they have it."""
    return replace(stage, **dict(_resized(stage, size)))


def _resized(stage: StageOutput, size: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    for name in ("logits", "masks"):
        maps: Tensor | None = getattr(stage, name)
        if maps is not None:
            yield name, resize(maps, size)
