"""Load weights into a network, and report what each parameter got.

Idea: by default a file fits whole or is refused, in one line that names the first parameter that does not. With
`strict=False` what can be fitted is, and the report lists what was loaded, adapted, missing and unexpected; too little
of the network filled is refused all the same, because a network that is mostly random looks like a trained one, and so
is a file that has more of the network's body than the network, because that is another network's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.weights.adapt import Context, adapt
from maskmed_zoo.weights.files import State, state_of
from maskmed_zoo.weights.keys import KeyMap, Match, match, renamed
from maskmed_zoo.weights.source import read_source

DERIVED = ("relative_position_index",)
"""Buffers that follow from the settings of the network, not from its training."""
HEADS = ("head", "heads", "fc", "classifier", "aux_head", "aux_classifier", "seg_head", "segmentation_head")
"""What the part of a network that gives the labels is called, which is another's in every task."""

ABSENT = "not in the file"
LEAST = 0.01
"""Share of a network below which a file is another network's: a few biases always have the right shape."""

log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What the parameters and buffers of a network got from a file, and which of its tensors were left.

    `share` is the part of the network's numbers that came from the file; rows of labels that it does not name do not
    count.
    """

    loaded: list[str] = field(default_factory=list[str])
    adapted: dict[str, str] = field(default_factory=dict[str, str])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    unexpected: list[str] = field(default_factory=list[str])
    share: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{len(self.loaded)} loaded, {len(self.adapted)} adapted, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected; {_percent(self.share)} of the network's numbers are from the file"
        ]
        lines += [f"  adapted {name}: {how}" for name, how in self.adapted.items()]
        lines += [f"  missing {name}: {why}" for name, why in self.missing.items()]
        lines += [f"  unexpected {name}" for name in self.unexpected]
        return "\n".join(lines)

    def summary(self) -> list[str]:
        """The same in a few lines: what has one reason is one of them, with its first name."""
        groups: dict[str, list[str]] = {}
        for name, how in self.adapted.items():
            groups.setdefault(f"adapted, {how}", []).append(name)
        for name, why in self.missing.items():
            groups.setdefault("fresh, not in the file" if why == ABSENT else "fresh, does not fit", []).append(name)
        if self.unexpected:
            groups["ignored, no place in the network"] = self.unexpected
        further = {key: f" and {len(names) - 1} more" if len(names) > 1 else "" for key, names in groups.items()}
        return [
            f"{len(self.loaded)} tensors loaded, {len(self.adapted)} adapted, {len(self.missing)} fresh, "
            f"{len(self.unexpected)} ignored; {_percent(self.share)} of the network's numbers are from the file",
            *(f"  {key}: {names[0]}{further[key]}" for key, names in groups.items()),
        ]


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
        source: a file of weights, whatever its name, a run, an exported folder, nnU-Net's folder of a fold or of folds,
            or a state dict.
        keys: how the file's names become the module's; default: recognised from the names.
        strict: refuse what does not fit whole.
        minimum: smallest share of the module's numbers that must come from the file, where not strict.

    Wrappers around the network, in the file or in `module`, make no difference. Raises `CheckpointError`, with the
    module unchanged, for files that cannot be read or do not fit.
    """
    place = "the state dict" if isinstance(source, Mapping) else str(source)
    state = state_of(source, place) if isinstance(source, Mapping) else read_source(Path(source))
    found, context = _matched(module, state, keys, place)
    _check_labels(context, strict, place)
    fitted, report = _fit(module, found.tensors, context)
    if strict:
        _check_strict(report, place)
    else:
        _check_fitted(report, found, minimum, place)
    module.load_state_dict(fitted)
    whole = not (report.adapted or report.missing or report.unexpected)
    log.log(logging.INFO if whole else logging.WARNING, "%s: %s", place, report)  # `create` returns the network alone
    return report


def start_from(module: nn.Module, source: Path) -> LoadReport:
    """Fill of a network what can be filled from a file, a run, an exported folder or nnU-Net's, and report.

    What does not fit stays fresh. Raises `CheckpointError`, with the module unchanged, for files that cannot be read,
    and where as good as nothing of them fits.
    """
    found, context = _matched(module, read_source(source), None, str(source))
    fitted, report = _fit(module, found.tensors, context)
    if report.share < LEAST:
        raise CheckpointError(
            f"{source}: fits next to nothing of the network: {_first(report)}; start from weights of the same encoder "
            f"with the same widths, or leave them out"
        )
    module.load_state_dict(fitted)
    return report


def _matched(module: nn.Module, state: State, keys: KeyMap | None, place: str) -> tuple[Match, Context]:
    """The file's tensors under the names of the network, and what both say of channels and labels."""
    try:
        found = match(state.tensors, module) if keys is None else renamed(state.tensors, module, keys)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    return found, _context(state, found, module)


def _context(state: State, found: Match, module: nn.Module) -> Context:
    inner: Any = found.inner
    names: tuple[str, ...] | None = getattr(inner, "class_names", None)
    channels: tuple[str, ...] | None = getattr(inner, "channel_names", None)

    def axes(which: str) -> dict[str, tuple[int, ...]]:
        """By the module's names, where it says so of itself."""
        known: dict[str, tuple[int, ...]] = (getattr(inner, which)() or {}) if hasattr(inner, which) else {}
        placed = {found.places.find(found.under + name): axis for name, axis in known.items()}
        return {name: axis for name, axis in placed.items() if name is not None}

    own = module.state_dict()
    is_alike = all(_is_alike(value, own[name]) for name, value in found.tensors.items() if name in own)
    is_relabelled = bool(state.class_names and names and state.class_names != names)
    is_rechanneled = bool(state.channel_names and channels and state.channel_names != channels)
    return Context(
        in_channels=getattr(inner, "in_channels", None),
        old_classes=state.class_names,
        new_classes=names,
        label_axes=axes("label_axes") or None if is_relabelled else None,
        query_axes=axes("query_axes") if is_relabelled or not is_alike else {},
        old_channels=state.channel_names,
        new_channels=channels,
        channel_axes=axes("channel_axes") if is_rechanneled else {},
    )


def _fit(module: nn.Module, tensors: Mapping[str, Tensor], context: Context) -> tuple[dict[str, Any], LoadReport]:
    fitted: dict[str, Any] = module.state_dict()
    own = {n: t for n, t in fitted.items() if isinstance(t, Tensor) and not n.endswith(DERIVED)}
    report, taken = LoadReport(), 0
    for name, target in own.items():
        value = tensors.get(name)
        if value is None:
            report.missing[name] = ABSENT
        elif _is_alike(value, target) and not (context.is_relabelled(name) or context.is_rechanneled(name)):
            report.loaded.append(name)
            fitted[name], taken = value, taken + target.numel()
        elif (found := adapt(name, value, target, context)) is not None:
            report.adapted[name] = found.how
            fitted[name], taken = found.value, taken + found.taken
        elif _is_alike(value, target) and not context.is_relabelled(name):  # channels that cannot be told apart
            report.loaded.append(name)
            fitted[name], taken = value, taken + target.numel()
        else:
            report.missing[name] = f"{_kind(value, target)} in the file, {_kind(target, value)} in the network"
    report.unexpected = [name for name in tensors if name not in fitted and not name.endswith(DERIVED)]
    report.share = taken / max(1, sum(t.numel() for t in own.values()))
    return fitted, report


def _is_alike(a: Tensor, b: Tensor) -> bool:
    kinds = ((t.is_floating_point(), t.is_complex()) for t in (a, b))
    return a.shape == b.shape and len(set(kinds)) == 1


def _kind(tensor: Tensor, other: Tensor) -> str:
    """What tells a tensor from the other: its shape, or its type."""
    return str(tensor.dtype if tensor.shape == other.shape else tuple(tensor.shape))


def _check_labels(context: Context, strict: bool, place: str) -> None:
    """The same number of labels under other names would be loaded without a sign, to the wrong labels."""
    old, new = context.old_classes, context.new_classes
    if not old or not new or len(old) != len(new) or tuple(old) == tuple(new):
        return
    if strict or context.label_axes is None:
        fit = "" if context.label_axes is None else ", or pass strict=False to match their rows by name"
        raise CheckpointError(
            f"{place}: trained for the labels {', '.join(old)}, the network is for {', '.join(new)}; "
            f"name and order data.labels as in the file{fit}"
        )


def _check_fitted(report: LoadReport, found: Match, minimum: float, place: str) -> None:
    beyond = surplus(report, found)
    if beyond:
        raise CheckpointError(
            f"{place}: '{beyond[0]}' has no place in the network, and it is none of a head's ({len(beyond)} such): "
            f"these are the weights of another network; build that one, or drop them by a function 'keys'"
        )
    if report.share < minimum:
        raise CheckpointError(
            f"{place}: fills {report.share:.0%} of the network, less than {minimum:.0%}: {_first(report)}; "
            f"these are the weights of another network, or load_weights needs another 'minimum'{_renaming(report)}"
        )


def surplus(report: LoadReport, found: Match) -> list[str]:
    """Unexpected tensors of the body: of parts of the network that are filled, and of more such parts.

    What the network does not have at all, a decoder, a head, a projection of self-supervised training, is none of
    them, nor is what belongs where a layer was taken out.
    """
    filled = {_part(found.inside(name)) for name in (*report.loaded, *report.adapted)}
    alike = {_numbered(part) for part in filled if re.search(r"\d", part)}
    unexpected = {name: found.inside(name) for name in report.unexpected}
    return [
        name
        for name, inside in unexpected.items()
        if (_part(inside) in filled or _numbered(_part(inside)) in alike)
        and not set(HEADS).intersection(inside.split("."))
        and not _is_taken_out(found.inner, inside)
    ]


def _part(name: str) -> str:
    return name.partition(".")[0]


def _numbered(part: str) -> str:
    return re.sub(r"\d+", "#", part)


def _is_taken_out(module: nn.Module, name: str) -> bool:
    """Whether `attach_head` took out what a tensor of this name belongs to."""
    for step in name.split(".")[:-1]:
        child = getattr(module, step, None)
        if not isinstance(child, nn.Module):
            return False
        if getattr(child, "is_taken_out", False):
            return True
        module = child
    return False


def _check_strict(report: LoadReport, place: str) -> None:
    if report.adapted or report.missing or report.unexpected:
        raise CheckpointError(
            f"{place}: does not fit: {_first(report)} ({len(report.adapted)} to adapt, {len(report.missing)} missing, "
            f"{len(report.unexpected)} unexpected); build its own network, or pass strict=False{_renaming(report)}"
        )


def _renaming(report: LoadReport) -> str:
    """What to do where not one name is that of a parameter."""
    if report.loaded or report.adapted or not report.unexpected:
        return ""
    name = report.unexpected[0]
    return f"; names such as '{name}' are none of the network's: rename them, load_weights(…, keys=function)"


def _percent(share: float) -> str:
    return "more than 99%" if 0.99 < share < 1 else f"{share:.0%}"


def _first(report: LoadReport) -> str:
    for group, entries in (("adapt", report.adapted), ("missing", report.missing)):
        for name, why in entries.items():
            return f"'{name}' {'would be adapted' if group == 'adapt' else 'is missing'}: {why}"
    return f"'{report.unexpected[0]}' has no place in the network" if report.unexpected else "nothing of it"
