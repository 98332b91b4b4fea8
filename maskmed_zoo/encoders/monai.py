"""The encoder of one of MONAI's segmentation networks, cut out of it: SegResNet, DynUNet, UNet, VNet and others.

The whole network is built with its own arguments and watched in one run without arithmetic (`adapters.probe`). Its
levels are what the last module gave at every resolution until the coarsest was reached; `levels` names other modules.
What has no part in those, the decoder and the output, is taken out, and a run ends with the last level.

Deviations: none in the layers kept. A level that MONAI makes by a function rather than by a module is taken before
that function (SwinUNETR's norm of its fourth map). Where the network's first map is coarser than the image, a residual
block on the image is put before it. `swin_unetr`, `unetr` and `mednext` are encoders of their own, level by level the
papers'.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from maskmed_zoo.adapters.probe import Outputs, cut, last_maps, module_maps, trace, used_parameters
from maskmed_zoo.adapters.taps import Taps
from maskmed_zoo.contracts import ComponentConfig, Encoder
from maskmed_zoo.errors import JointError, nearest
from maskmed_zoo.layers.full_resolution import WithFullResolution
from maskmed_zoo.settings import LONGEST_WINDOW, Triple, Width

NETWORKS = (
    "AttentionUnet", "BasicUNet", "DynUNet", "FlexibleUNet", "MedNeXt", "SegResNet", "SegResNetDS", "SwinUNETR", "UNet",
    "VNet",
)  # fmt: skip
OURS = {"spatial_dims": 3, "out_channels": 2, "pretrained": False}
"""Arguments that are not the user's: the second is of the part that is cut off, the last would download weights."""
MOST_IN_ARGUMENTS = 2048
"""Of channels, blocks and sizes that MONAI takes; nothing bounds them there."""


class MONAIConfig(ComponentConfig):
    """Settings of `monai`."""

    kind: Literal["monai"] = "monai"
    network: str = Field(
        default="SegResNet", description="a class of monai.networks.nets", json_schema_extra={"enum": [*NETWORKS]}
    )
    arguments: dict[str, Any] = Field(default={}, description="of that class, as in its documentation")
    levels: tuple[str, ...] | None = Field(
        default=None, description="names of modules whose outputs are the levels; null: found"
    )
    probe_patch: Triple = Field(
        default=(64, 64, 64), description="a size (z, y, x) that the network takes, in which the levels are found"
    )
    stem_channels: Width = Field(
        default=16, description="of the level at full resolution, if the network itself has none"
    )

    @field_validator("arguments")
    @classmethod
    def _within_limits(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name, value in arguments.items():
            limit = LONGEST_WINDOW if name == "window_size" else MOST_IN_ARGUMENTS
            if any(abs(number) > limit for number in _numbers(value)):
                raise ValueError(f"{name}: expected numbers of at most {limit}")
        return arguments

    @field_validator("network")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in NETWORKS:
            raise ValueError(f"no encoder is known in '{name}'{nearest(name, NETWORKS)} (known: {', '.join(NETWORKS)})")
        return name


class MONAIEncoder(Encoder):
    """A network of MONAI's up to its coarsest level."""

    Config = MONAIConfig

    def __init__(self, *, in_channels: int, config: MONAIConfig | None = None) -> None:
        super().__init__()
        config = config or MONAIConfig()
        device = torch.get_default_device()
        with torch.device("cpu"):  # some of MONAI's layers read numbers back from a tensor, which has none on meta
            self.network = _build(config, in_channels).to(device)
        names = self._levels(config, in_channels)
        self.taps = Taps(self.network, names)
        run = trace(Outputs(self.network, self.taps), in_channels, config.probe_patch)
        cut(self.network, used_parameters(run), names)
        self.full = WithFullResolution(in_channels, run.spec(run.outputs), config.stem_channels)
        self.out_spec = self.full.out_spec

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        return self.full(image, self.taps.run(self.network, image))

    def _levels(self, config: MONAIConfig, in_channels: int) -> list[str]:
        run = trace(self.network, in_channels, config.probe_patch)
        if config.levels is not None:
            return module_maps(run, config.levels, config.network)
        nodes = [x.grad_fn for x in run.outputs]
        coarsest = last_maps(run, before=len(run.calls), leading_to=nodes)[-1]
        end = run.calls.index(coarsest)
        return [call.name for call in last_maps(run, before=end + 1, leading_to=nodes)]


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in an argument, and the length of every list, which stands for as many layers."""
    if isinstance(value, list | tuple | dict):
        inside = cast(Collection[Any], value.values() if isinstance(value, dict) else value)
        yield len(inside)
        for each in inside:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:300]


def _build(config: MONAIConfig, in_channels: int) -> nn.Module:
    from monai.networks import nets

    cls = getattr(nets, config.network)
    known = inspect.signature(cls.__init__).parameters
    for name in config.arguments:
        if name not in known or name in (*OURS, "self", "in_channels"):
            free = [key for key in known if key not in (*OURS, "self", "in_channels")]
            raise JointError(
                f"encoder 'monai': arguments.{name}: {config.network} takes no such argument here"
                f"{nearest(name, free)} (known: {', '.join(free)})"
            )
    fixed = {name: value for name, value in {**OURS, "in_channels": in_channels}.items() if name in known}
    try:
        return cls(**fixed, **config.arguments)
    except Exception as error:  # whatever MONAI thinks of the arguments
        raise JointError(
            f"encoder 'monai': {config.network} with arguments {_short(config.arguments)} cannot be built: "
            f"{' '.join(str(error).split())}"
        ) from error
