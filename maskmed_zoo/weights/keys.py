"""Names: how the parameters of other networks are called in ours.

A key map turns a state dict into one under our names, and leaves what it does not know as it is, so that it shows up
in the report as unexpected. Which map a file needs is seen from its keys.

Sources: nnU-Net v2's `PlainConvUNet` and `ResidualEncoderUNet` (dynamic-network-architectures), which store every layer
twice (`all_modules`, `decoder.encoder`) and count decoder stages from the lowest, where stage 0 is the finest here; and
MONAI's `SwinUNETR`, whole, or its Swin transformer alone as self-supervised training saves it (`fc1` for `linear1`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
KeyMap = Callable[[Tensors, nn.Module], dict[str, Tensor]]
"""A state dict and the module it is for, to the state dict under the module's names."""

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of parallel and compiled modules
_DUPLICATES = re.compile(r"^decoder\.encoder\.|\.all_modules\.")
_ENCODER_RULES = (
    (re.compile(r"^encoder\.stem\.convs\.(\d+)\."), r"encoder.stem.\1."),
    (re.compile(r"^encoder\.stages\.(\d+)\.(?:0\.convs|blocks)\.(\d+)\."), r"encoder.levels.\1.\2."),
    (re.compile(r"\.skip\.\d+\."), ".skip.1."),  # nnU-Net leaves the pooling out of the list where there is none
)
_DECODER_RULES = (
    (re.compile(r"^decoder\.transpconvs\.(\d+)\."), "decoder.upsamplers.{}."),
    (re.compile(r"^decoder\.stages\.(\d+)\.convs\."), "decoder.stages.{}."),
    (re.compile(r"^decoder\.seg_layers\.(\d+)\."), "head.projections.{}."),
)
_SWIN_RULES = (
    (re.compile(r"^(?=patch_embed\.|layers\d)"), "swinViT."),
    (re.compile(r"^swinViT\.(.*)\.mlp\.fc([12])\."), r"swinViT.\1.mlp.linear\2."),
    (re.compile(r"^swinViT\."), "encoder.swin."),
    *((re.compile(rf"^encoder{n}\."), f"encoder.blocks.{i}.") for n, i in ((1, 0), (2, 1), (3, 2), (4, 3), (10, 5))),
    *((re.compile(rf"^decoder{n}\."), f"decoder.stages.{n - 1}.") for n in range(1, 6)),
    (re.compile(r"^out\.conv\.conv\."), "head.projections.0."),
)


def prefixed(prefix: str) -> KeyMap:
    """The map of a network that sits whole under `prefix` in the module, such as "encoder.net."."""
    return lambda state, module: {prefix + name: value for name, value in state.items()}


def own(state: Tensors, module: nn.Module) -> dict[str, Tensor]:
    """Of this package: names are ours, with `model.` before them where nnU-Net's trainer saved them."""
    known = module.state_dict().keys()
    return {n.removeprefix("model.") if n not in known else n: value for n, value in state.items()}


def nnunet(state: Tensors, module: nn.Module) -> dict[str, Tensor]:
    """Of nnU-Net v2, for encoder `plain_conv` or `residual`, decoder `unet`, head `pointwise`."""
    stages = len(getattr(getattr(module, "decoder", None), "stages", ()))
    return {nnunet_name(n, stages): value for n, value in state.items() if not is_duplicate(n)}


def is_duplicate(name: str) -> bool:
    """Whether nnU-Net holds the layer of this name under another one too."""
    return bool(_DUPLICATES.search(name))


def nnunet_name(name: str, stages: int) -> str:
    """Our name for a parameter of nnU-Net's network with so many decoder stages."""
    for pattern, ours in _DECODER_RULES:
        match = pattern.match(name)
        if match:
            return ours.format(stages - 1 - int(match[1])) + name[match.end() :]
    for pattern, ours in _ENCODER_RULES:
        name = pattern.sub(ours, name)
    return name


def swin_unetr(state: Tensors, module: nn.Module) -> dict[str, Tensor]:
    """Of MONAI's SwinUNETR v1 or v2, for encoder `swin_unetr`, decoder `unetr_up`, head `pointwise`."""
    del module
    renamed: dict[str, Tensor] = {}
    for old, value in state.items():
        name: str = old
        for pattern, ours in _SWIN_RULES:
            name = pattern.sub(ours, name)
        renamed[name] = value
    return renamed


_SIGNS: tuple[tuple[re.Pattern[str], KeyMap], ...] = (
    (re.compile(r"^decoder\.(?:transpconvs|seg_layers)\.\d"), nnunet),
    (re.compile(r"^swinViT\.|^layers1\.0\.blocks\."), swin_unetr),
)


def unwrapped(state: Tensors, module: nn.Module) -> dict[str, Tensor]:
    """Without the prefixes that parallel and compiled modules put before every name, unless the module has them too."""
    known = module.state_dict().keys()
    return {name if name in known else _WRAPPERS.sub("", name): value for name, value in state.items()}


def recognize(state: Tensors) -> KeyMap:
    """The key map that a state dict's names call for; `own` where none does."""
    return next((found for sign, found in _SIGNS if any(map(sign.match, state))), own)
