"""Where the features are in a network that somebody else has built: one run on a small patch, every module watched.

The run is on the meta device, with stand-ins for all parameters and buffers: no arithmetic, no random numbers, and the
network stays as it is. One that cannot be run there (it reads numbers back, or keeps tensors that are no buffers) is
run where it lives. Which layers make the output, which tensors lead to it and which parameters have a part in it
follows from autograd's graph, not from names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from maskmed_zoo.adapters.taps import Taps
from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.errors import JointError, nearest
from maskmed_zoo.settings import Size3

CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d)
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Call:
    """One call of a module: its first argument and its result, with their places in the graph at that moment."""

    name: str
    module: nn.Module
    taken: Tensor | None
    given: Tensor | None
    source: Any
    node: Any


@dataclass(frozen=True)
class Trace:
    """The calls of a run in the order in which they ended, the network's outputs, and its parameters' stand-ins."""

    calls: list[Call]
    outputs: list[Tensor]
    parameters: dict[str, Tensor]
    patch: Size3

    def strides(self, x: Tensor | None) -> Size3 | None:
        """Voxels of the patch per voxel of (1 c d h w); None for what is no such map."""
        if x is None or x.ndim != 5 or x.shape[0] != 1 or not all(x.shape):
            return None
        pairs = list(zip(self.patch, x.shape[2:], strict=True))
        if any(p % s for p, s in pairs):
            return None
        z, y, x_ = (p // s for p, s in pairs)
        return (z, y, x_)

    def spec(self, maps: Sequence[Tensor]) -> FeatureSpec:
        """Channels and strides of maps (1 c d h w)."""
        strides = [self.strides(x) for x in maps]
        return FeatureSpec(tuple(x.shape[1] for x in maps), tuple(s for s in strides if s is not None))

    def once(self) -> set[str]:
        """Names of the modules that were called exactly once."""
        return {name for name, count in Counter(call.name for call in self.calls).items() if count == 1}


def trace(network: nn.Module, in_channels: int, patch: Size3) -> Trace:
    """Run `network` on one image (1 c d h w) in evaluation mode; it is left as it was.

    Raises `JointError` if it does not take such an image.
    """
    try:
        return _run(network, in_channels, patch, torch.device("meta"))
    except Exception:  # whatever it cannot do without numbers
        where = next((p.device for p in network.parameters()), torch.device("cpu"))
        try:
            return _run(network, in_channels, patch, where)
        except Exception as error:
            if isinstance(error, JointError):
                raise
            said = " ".join(str(error).split())[:160]
            raise JointError(
                f"{type(network).__name__} does not take an image (1, {in_channels}, {', '.join(map(str, patch))})"
                f": {said}; state the number of channels and a patch size that it takes"
            ) from error


def last_maps(run: Trace, *, before: int, leading_to: Iterable[Any]) -> list[Call]:
    """The last module output at every resolution, finest first, among the first `before` calls and the ancestors of
    some nodes.

    Modules that are called several times are left out, and what happens inside of a module that brings one map to a
    finer resolution: the decoder's answer at a resolution is what enters there.
    """
    chain, once = ancestors(leading_to), run.once()
    ups = {c.name + "." for c in run.calls if _is_finer(run.strides(c.given), run.strides(c.taken))}
    found: dict[Size3, Call] = {}
    for call in run.calls[:before]:
        stride = run.strides(call.given)
        is_inside = any(call.name.startswith(name) for name in ups)
        if stride is not None and call.name in once and call.node in chain and not is_inside:
            found[stride] = call
    return [found[stride] for stride in sorted(found, key=prod)]


def output_layer(run: Trace) -> int | None:
    """Index of the call of the convolution that makes the output, at the finest resolution; None if there is none.

    That is the first one met on the way back from the output. A layer from labels to labels, as some networks have
    after it, is passed.
    """
    convolutions = {c.node: i for i, c in enumerate(run.calls) if isinstance(c.module, CONVOLUTIONS) and c.node}
    layers: set[int] = set()
    for index in _first(convolutions, (x.grad_fn for x in run.outputs)):
        module = run.calls[index].module
        before = _first(convolutions, [run.calls[index].source])
        labels = module.out_channels
        is_passed = module.in_channels == labels and before and all(_width(run.calls[i]) != labels for i in before)
        layers |= before if is_passed else {index}
    sizes = {i: prod(x.shape[2:]) for i in layers if (x := run.calls[i].taken) is not None}
    return max(sizes, key=lambda i: (sizes[i], i), default=None)


def module_maps(run: Trace, names: Iterable[str], network: str) -> list[str]:
    """`names` sorted by the resolution of what those modules give, finest first.

    Raises `JointError` for a module that gives no map, or is not called exactly once.
    """
    given, once = {call.name: run.strides(call.given) for call in run.calls}, run.once()
    strides: dict[str, Size3] = {}
    for name in names:
        stride = given.get(name)
        if stride is None or name not in once:
            raise JointError(
                f"the module '{name}' of {network} gives no map (b c d h w) whose size divides the patch "
                f"{run.patch}, or is not called exactly once{nearest(name, once)}; named_modules() lists the names"
            )
        strides[name] = stride
    if not strides:
        raise JointError(f"no module of {network} is named; leave the names out to have them found")
    return sorted(strides, key=lambda name: prod(strides[name]))


def used_parameters(run: Trace) -> set[str]:
    """Names of the parameters that the outputs depend on."""
    reached = {id(node.variable) for node in ancestors(x.grad_fn for x in run.outputs) if hasattr(node, "variable")}
    return {name for name, parameter in run.parameters.items() if id(parameter) in reached}


def cut(network: nn.Module, used: set[str], tapped: Iterable[str]) -> None:
    """Put a `Cut` wherever a module holds parameters of which none is used, and no tapped module.

    `used` holds their names in `Outputs`.
    """
    known = {id(p): f"network.{name}" for name, p in network.named_parameters()}
    kept = {id(m) for name in tapped for m in _path(network, name)}

    def is_idle(module: nn.Module) -> bool:
        names = [known[id(p)] for p in module.parameters()]
        return bool(names) and not used.intersection(names)

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if is_idle(child) and id(child) not in kept and not isinstance(child, CONTAINERS):
                setattr(module, name, Cut())


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Under every name that `old` has in `network`."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)


class Outputs(nn.Module):
    """A network whose outputs are what its taps give."""

    def __init__(self, network: nn.Module, taps: Taps) -> None:
        super().__init__()
        self.network, self.taps = network, taps

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_l d_l h_l w_l) per tap."""
        return self.taps.run(self.network, image)


class Cut(nn.Module):
    """Stands where a module was whose result nobody needs."""

    is_taken_out = True

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Any (b c d h w) to an empty tensor."""
        return x.new_empty(0)


def ancestors(nodes: Iterable[Any]) -> set[Any]:
    """Nodes of the graph from which some of `nodes` follow, and these themselves."""
    waiting, seen = [node for node in nodes if node is not None], set[Any]()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [after for after, _ in node.next_functions if after is not None]
    return seen


def _first(convolutions: dict[Any, int], nodes: Iterable[Any]) -> set[int]:
    waiting, seen, found = [node for node in nodes if node is not None], set[Any](), set[int]()
    while waiting:
        node = waiting.pop()
        if node in convolutions:
            found.add(convolutions[node])
        elif node not in seen:
            seen.add(node)
            waiting += [after for after, _ in node.next_functions if after is not None]
    return found


def _path(network: nn.Module, name: str) -> Iterator[nn.Module]:
    words = name.split(".")
    return (network.get_submodule(".".join(words[: i + 1])) for i in range(len(words)))


def _width(call: Call) -> int:
    return call.module.in_channels if isinstance(call.module, CONVOLUTIONS) else 0


def _is_finer(stride: Size3 | None, other: Size3 | None) -> bool:
    return stride is not None and other is not None and prod(stride) < prod(other)


def _run(network: nn.Module, in_channels: int, patch: Size3, device: torch.device) -> Trace:
    calls: list[Call] = []

    def record(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taken = args[0] if args and isinstance(args[0], Tensor) else None
        given = output if isinstance(output, Tensor) else None
        nodes = [None if x is None else x.grad_fn for x in (taken, given)]
        calls.append(Call(name, module, taken, given, *nodes))

    modes = {module: module.training for module in network.modules()}
    handles = [m.register_forward_hook(partial(record, name)) for name, m in network.named_modules() if name]
    try:
        network.eval()
        here = [device] if device.type == "cuda" else []
        with _stand_ins(network, device) as parameters, torch.enable_grad(), torch.random.fork_rng(here):
            dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
            output = network(torch.zeros(1, in_channels, *patch, device=device, dtype=dtype, requires_grad=True))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return Trace(calls, list(_tensors(output)), parameters, patch)


@contextmanager
def _stand_ins(network: nn.Module, device: torch.device) -> Generator[dict[str, Tensor]]:
    """Other tensors in the place of every parameter and buffer, those of the parameters by name; shared ones once."""

    def stand_in(x: Tensor) -> Tensor:
        return torch.empty_like(x, device=device) if device.type == "meta" else x.detach().clone()

    saved = [
        (module, name, x)
        for module in network.modules()
        for name, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]
    made: dict[int, Tensor] = {}
    for _, _, x in saved:
        if isinstance(x, nn.Parameter):
            made.setdefault(id(x), nn.Parameter(stand_in(x), requires_grad=x.is_floating_point()))
        else:
            made.setdefault(id(x), stand_in(x))
    parameters = {name: made[id(p)] for name, p in network.named_parameters()}
    try:
        for module, name, x in saved:
            setattr(module, name, made[id(x)])
        yield parameters
    finally:
        for module, name, x in saved:
            setattr(module, name, x)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
