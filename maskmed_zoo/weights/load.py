"""Load weights into a network, and report what each parameter got.

Idea: by default a file fits whole or is refused, in one line that names the first parameter that does not. With
`strict=False` what can be fitted is, and the report lists what was loaded, adapted, missing and unexpected; too little
of the network filled is refused all the same, because a network that is mostly random looks like a trained one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.weights.adapt import Context, adapt
from maskmed_zoo.weights.card import weights_in
from maskmed_zoo.weights.files import State, read_state
from maskmed_zoo.weights.keys import KeyMap, recognize, unwrapped

DERIVED = ("relative_position_index",)
"""Buffers that follow from the settings of the network, not from its training."""

log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What the parameters and buffers of a network got from a file, and which of its tensors were left.

    `share` is the part of the network's numbers that came from the file.
    """

    loaded: list[str] = field(default_factory=list[str])
    adapted: dict[str, str] = field(default_factory=dict[str, str])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    unexpected: list[str] = field(default_factory=list[str])
    share: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{len(self.loaded)} loaded, {len(self.adapted)} adapted, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected; {self.share:.0%} of the network's numbers are from the file"
        ]
        lines += [f"  adapted {name}: {how}" for name, how in self.adapted.items()]
        lines += [f"  missing {name}: {why}" for name, why in self.missing.items()]
        lines += [f"  unexpected {name}" for name in self.unexpected]
        return "\n".join(lines)


def load_weights(
    module: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    keys: KeyMap | None = None,
    strict: bool = True,
    minimum: float = 0.5,
) -> LoadReport:
    """Fill a network, or a part of one, from a file and report.

    Args:
        module: a `SegmentationModel` or any module.
        source: a `.safetensors`, `.pt` or `.pth` file, an exported folder, or a state dict.
        keys: how the file's names become the module's; default: recognised from the names.
        strict: refuse what does not fit whole.
        minimum: smallest share of the module's numbers that must come from the file, where not strict.

    Raises `CheckpointError`, with the module unchanged, for files that cannot be read or do not fit.
    """
    place = "the state dict" if isinstance(source, Mapping) else str(source)
    state = State(dict(source)) if isinstance(source, Mapping) else read_state(weights_in(Path(source)))
    tensors = unwrapped(state.tensors, module)
    tensors = (keys or recognize(tensors))(tensors, module)
    new_classes: tuple[str, ...] | None = getattr(module, "class_names", None)
    _check_labels(state.class_names, new_classes, place)
    context = Context(getattr(module, "in_channels", None), state.class_names, new_classes)
    fitted, report = _fit(module, tensors, context)
    if strict:
        _check_strict(report, place)
    elif report.share < minimum:
        raise CheckpointError(
            f"{place}: fills {report.share:.0%} of the network, less than {minimum:.0%}: {_first(report)}; "
            f"these are the weights of another network, or need another 'minimum'"
        )
    module.load_state_dict(fitted)
    whole = not (report.adapted or report.missing or report.unexpected)
    log.log(logging.INFO if whole else logging.WARNING, "%s: %s", place, report)  # `create` returns the network alone
    return report


def _fit(module: nn.Module, tensors: Mapping[str, Tensor], context: Context) -> tuple[dict[str, Any], LoadReport]:
    own = module.state_dict()
    report, fitted = LoadReport(), dict[str, Any](own)
    filled = 0
    total = sum(t.numel() for name, t in own.items() if not name.endswith(DERIVED))
    for name, target in own.items():
        if name.endswith(DERIVED):
            continue
        value = tensors.get(name)
        if value is None:
            report.missing[name] = "not in the file"
            continue
        if value.shape == target.shape and value.is_floating_point() == target.is_floating_point():
            report.loaded.append(name)
        else:
            found = adapt(name, value, target, context)
            if found is None:
                report.missing[name] = f"{_kind(value, target)} in the file, {_kind(target, value)} in the network"
                continue
            value, report.adapted[name] = found
        fitted[name] = value
        filled += target.numel()
    report.unexpected = [name for name in tensors if name not in own and not name.endswith(DERIVED)]
    report.share = filled / max(1, total)
    return fitted, report


def _kind(tensor: Tensor, other: Tensor) -> str:
    """What tells a tensor from the other: its shape, or its type."""
    return str(tensor.dtype if tensor.shape == other.shape else tuple(tensor.shape))


def _check_labels(old: tuple[str, ...] | None, new: tuple[str, ...] | None, place: str) -> None:
    """The same number of labels under other names would be loaded without a sign, to the wrong labels."""
    if old and new and len(old) == len(new) and old != new:
        raise CheckpointError(
            f"{place}: trained for the labels {', '.join(old)}, the network is for {', '.join(new)}; "
            f"name and order data.labels as in the file"
        )


def _check_strict(report: LoadReport, place: str) -> None:
    if report.adapted or report.missing or report.unexpected:
        raise CheckpointError(
            f"{place}: does not fit: {_first(report)} ({len(report.adapted)} to adapt, {len(report.missing)} missing, "
            f"{len(report.unexpected)} unexpected); build its own network, or pass strict=False"
        )


def _first(report: LoadReport) -> str:
    for group, entries in (("adapt", report.adapted), ("missing", report.missing)):
        for name, why in entries.items():
            return f"'{name}' {'would be adapted' if group == 'adapt' else 'is missing'}: {why}"
    return f"'{report.unexpected[0]}' has no place in the network" if report.unexpected else "nothing of it"
