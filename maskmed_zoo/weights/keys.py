"""Names: how the parameters of other networks are called in ours.

A key map turns a state dict into one under our names, and leaves what it does not know as it is, so that it shows up
in the report as unexpected. Which map a file needs is seen from its keys.

Before that, the wrappers come off: parallel, compiled and training modules put `module.`, `_orig_mod.`, `model.` and
the like before every name, in the file as in the network that is to be filled (`match`).

Sources: nnU-Net v2's `PlainConvUNet` and `ResidualEncoderUNet` (dynamic-network-architectures), which store every layer
twice (`all_modules`, `decoder.encoder`) and count decoder stages from the lowest, where stage 0 is the finest here; and
MONAI's `SwinUNETR`, whole, or its Swin transformer alone as self-supervised training saves it (`fc1` for `linear1`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor, nn

from maskmed_zoo.errors import CheckpointError

Tensors = Mapping[str, Tensor]
KeyMap = Callable[[Tensors, nn.Module], dict[str, Tensor]]
"""A state dict and the module it is for, to the state dict under the module's names."""

_LEADING = re.compile(r"(?:(?:module|_orig_mod|model|net|network)\.)+")
"""What parallel, compiled and training modules put before the names of the network inside them, in any order."""
_TECHNICAL = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
_INNER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""In the middle of names, where a part of a network was compiled or wrapped."""
_INNER_OR_MODULE = re.compile(rf"{_INNER.pattern}|(?<![^.])module\.")
MOST_PREFIXES = 16
"""Ways of names in one file to begin with wrappers that are tried, the commonest."""
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
    """Of this package: names are ours."""
    del module
    return dict(state)


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


def recognized(state: Tensors) -> list[KeyMap]:
    """The key maps that a state dict's names may call for, `own` first."""
    return [own, *(found for sign, found in _SIGNS if any(map(sign.match, state)))]


class Places:
    """The names of a module's parameters and buffers, found without the wrappers inside them where that is clear."""

    def __init__(self, module: nn.Module) -> None:
        self.names = [name for name, value in module.state_dict().items() if isinstance(value, Tensor)]
        for pattern in (_INNER_OR_MODULE, _INNER, re.compile(r"(?!)")):
            self._pattern = pattern
            self._found = {self.bare(name): name for name in self.names}
            if len(self._found) == len(self.names):
                break

    def bare(self, name: str) -> str:
        """A name without wrappers in its middle."""
        return self._pattern.sub("", name)

    def find(self, name: str) -> str | None:
        """The module's own name for `name`, or None."""
        return self._found.get(self.bare(name))


@dataclass(frozen=True)
class Match:
    """Tensors under a module's names; those without a place keep the name they were looked for under.

    `inner` is the network inside the module's wrappers, at `under`; `prefix` is what stood before it in the file.
    """

    tensors: dict[str, Tensor]
    inner: nn.Module
    places: Places
    under: str = ""
    prefix: str = ""

    def inside(self, name: str) -> str:
        """A name of `tensors` as `inner` has it, without wrappers."""
        return self.places.bare(name).removeprefix(self.places.bare(self.under))


def match(state: Tensors, module: nn.Module, maps: Callable[[Tensors], Sequence[KeyMap]] = recognized) -> Match:
    """Take the wrappers off the names of a file's network and of the module's, and bring one under the other.

    Of the prefixes of wrappers that names in the file and in the module begin with, and of the key maps, those are
    taken under which the most tensors have a place; the first, which is none, where that is as good, so a child called
    `model` keeps its name. Tensors that do not begin so keep their names.

    Raises `CheckpointError` for a file that holds the network twice, or two tensors for one place.
    """
    places, most = Places(module), 0
    best = Match(dict(state), module, places)
    for prefix in _prefixes(state):
        carried = _merged((places.bare(n.removeprefix(prefix)), v) for n, v in state.items() if n.startswith(prefix))
        for under, keys in product(_prefixes(places.names), maps(carried)):
            named = keys(carried, _inside(module, under, places.names))
            hits = sum(places.find(under + name) is not None for name in named)
            if hits > most:
                rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
                best = Match(_placed(named, rest, under, places), module, places, under, prefix)
                most = hits
        if most == len(state):
            break
    left = [name for name in best.tensors if places.find(name) is None]
    for prefix in _prefixes(left) if most else ():
        if (
            sum(places.find(best.under + n.removeprefix(prefix)) is not None for n in left if n.startswith(prefix))
            == most
        ):
            raise CheckpointError(f"holds the network a second time, under '{prefix}'; keep one of the two")
    under = best.under or _common(places.names)
    return replace(best, under=under, inner=_inside(module, under, places.names))


def renamed(state: Tensors, module: nn.Module, keys: KeyMap) -> Match:
    """By a key map of the user, which gets the names without `module.` and `_orig_mod.` before them."""
    places = Places(module)
    plain = {n if n in places.names else _TECHNICAL.sub("", n): value for n, value in state.items()}
    tensors, under = _placed(keys(plain, module), {}, "", places), _common(places.names)
    return Match(tensors, _inside(module, under, places.names), places, under)


def _placed(named: Tensors, rest: Tensors, under: str, places: Places) -> dict[str, Tensor]:
    wanted = [*((under + name, value) for name, value in named.items()), *rest.items()]
    return _merged((places.find(name) or name, value) for name, value in wanted)


def _merged(pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in pairs:
        if name in tensors:
            raise CheckpointError(f"holds two tensors for '{name}'; keep one of them")
        tensors[name] = value
    return tensors


def _prefixes(names: Iterable[str]) -> list[str]:
    """The prefixes of wrappers among names, the shortest, which is none, first."""
    found = Counter[str]()
    for name in names:
        run = _LEADING.match(name)
        ends = [] if run is None else [i + 1 for i, c in enumerate(run[0]) if c == "."]
        found.update(name[:end] for end in ends[:MOST_PREFIXES])
    return sorted(["", *(prefix for prefix, _ in found.most_common(MOST_PREFIXES))], key=len)


def _common(names: Sequence[str]) -> str:
    """The longest prefix of wrappers that all names have."""
    return next((p for p in reversed(_prefixes(names)) if all(n.startswith(p) for n in names)), "")


def _inside(module: nn.Module, under: str, names: Sequence[str]) -> nn.Module:
    """The module at `under`; of the whole, what all its wrappers hold."""
    try:
        return module.get_submodule((under or _common(names)).removesuffix("."))
    except AttributeError:  # a module that names its state otherwise than its children
        return module
