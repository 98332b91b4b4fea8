"""2-D backbones of timm by name, with fresh weights, those of a file or those that timm downloads."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskmed_zoo.errors import CheckpointError, JointError, nearest
from maskmed_zoo.weights.files import read_state
from maskmed_zoo.weights.keys import Tensors, match, own
from maskmed_zoo.weights.load import LoadReport, surplus

FAMILIES = ("resnet", "convnext", "efficientnet", "vision_transformer", "swin_transformer")
"""Modules of timm.models whose networks can be inflated."""
WHOLE: dict[str, dict[str, Any]] = {
    "vision_transformer": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False, "always_partition": True},
}
"""Families whose forward pass is ours when inflated, and what makes theirs take images of any size."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A 2-D network that maps (b c h w) to a list of features, and what is known about those."""

    module: nn.Module
    family: str
    in_channels: int
    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    is_channels_last: bool


def build_2d(name: str, in_channels: int, weights: str | None, any_family: bool) -> Backbone:
    """A backbone of timm; vision and Swin transformers as whole networks unless `any_family`.

    Raises `JointError` for a name that is unknown, gives no features or is of no family that can be inflated, and
    `CheckpointError` for weights that cannot be read or are those of another network.
    """
    import timm

    if not timm.is_model(name):
        raise JointError(f"encoder 'timm': timm has no model '{name}'{nearest(name, timm.list_models())}")
    family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    if not any_family and family not in FAMILIES:
        raise JointError(
            f"encoder 'timm': '{name}' is of timm's {family}, which has no 3-D form here ({', '.join(FAMILIES)}); take "
            f"one of those, or 'mode: slices'"
        )
    settings: dict[str, Any] = WHOLE.get(family, {}) | ({"drop_path_rate": 0.0} if family in FAMILIES else {})
    is_whole = family in WHOLE and not any_family
    settings |= {"num_classes": 0} if is_whole else {"features_only": True}
    if weights is not None and torch.get_default_device().type != "meta":
        settings["pretrained"] = True
    state = read_state(Path(weights)).tensors if "pretrained" in settings and weights not in (None, "timm") else None
    try:
        if state is not None:
            settings["pretrained_cfg_overlay"] = _overlay(name, family, in_channels, state)
        module: Any = timm.create_model(name, in_chans=in_channels, **settings)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        if "pretrained" in settings:
            raise CheckpointError(f"encoder 'timm': the weights '{weights}' do not fit '{name}': {said}") from error
        raise JointError(f"encoder 'timm': '{name}' gives no features: {said}") from error
    info = module.feature_info if is_whole else module.feature_info.get_dicts()
    return Backbone(
        module=module,
        family=family,
        in_channels=in_channels,
        channels=tuple(int(level["num_chs"]) for level in info),
        reductions=tuple(int(level["reduction"]) for level in info),
        is_channels_last=str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC"),
    )


def _overlay(name: str, family: str, in_channels: int, state: dict[str, Tensor]) -> dict[str, Any]:
    """What tells timm to take its weights from a file, whose load report for the 2-D network is logged.

    Raises `ValueError` if a parameter below the classifier is not in the file, which timm itself would leave fresh, or
    if the file has more of the network's body than the network.
    """
    import timm

    whole: Any = timm.create_model(name, in_chans=in_channels)
    convert: Any = getattr(importlib.import_module(f"timm.models.{family}"), "checkpoint_filter_fn", None)
    found = match(state, whole, lambda _state: [own] if convert is None else [own, partial(_converted, convert)])
    first = whole.pretrained_cfg.get("first_conv")
    given = found.tensors.get(f"{first}.weight")
    classifier = whole.pretrained_cfg.get("classifier") or ()
    heads = ("head.", *(f"{h}." for h in ((classifier,) if isinstance(classifier, str) else classifier)))
    body = {key: target.numel() for key, target in whole.state_dict().items() if not key.startswith(heads)}
    lost = {key: "not in the file" for key in body if key not in found.tensors}
    for key in lost:
        if "num_batches" not in key:
            raise ValueError(f"'{key}' is not in the file")
    report = LoadReport(
        loaded=[key for key in whole.state_dict() if key in found.tensors],
        missing=lost,
        unexpected=[key for key in found.tensors if key not in whole.state_dict()],
        share=1 - sum(body[key] for key in lost) / max(1, sum(body.values())),
    )
    beyond = surplus(report, found)
    if beyond:
        raise ValueError(f"'{beyond[0]}' has no place in it ({len(beyond)} such)")
    log.log(logging.WARNING if report.unexpected else logging.INFO, "encoder 'timm', '%s': %s", name, report)
    plain = {found.places.bare(key.removeprefix(found.prefix)): value for key, value in state.items()}
    if given is not None and given.shape[1] == in_channels:
        return {"state_dict": plain, "first_conv": None}  # as it is; timm would take it for one of three channels
    if given is not None and given.shape[1] != 3 and in_channels not in (1, 3):
        raise ValueError(f"'{first}.weight' is for {given.shape[1]} channels, expected 3 or {in_channels}")
    return {"state_dict": plain}


def _converted(convert: Any, state: Tensors, module: nn.Module) -> dict[str, Tensor]:
    """Older names and other people's, as timm itself brings them to its own; nothing where it cannot."""
    try:
        return dict(convert(dict(state), module))
    except Exception as error:  # made for one kind of file, and tried on all
        log.debug("encoder 'timm': %s", error)
        return {}
