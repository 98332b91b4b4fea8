"""What chosen modules inside a network give, as the result of running it.

`Taps` puts a forward hook on each of those modules and ends the run when all of them have answered, so that what comes
after them costs nothing. Between two calls it holds no tensor. The hooks are there for good rather than for one call,
because a compiled network does not look whether hooks have changed. One call at a time: `nn.DataParallel` is not
supported, `DistributedDataParallel` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from maskmed_zoo.errors import JointError


class Taps:
    """Hooks on the modules `names` of `network`, each of which must be called once per run."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.found: dict[str, Tensor] | None = None
        for name in self.names:
            network.get_submodule(name).register_forward_hook(partial(self._keep, name))

    def run(self, network: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Call `network` until every tapped module has answered; their outputs in the order of `names`.

        Raises `JointError` for a module that was not called or gave no tensor.
        """
        found = self.found = {}
        try:
            network(*args, **kwargs)
        except _Complete:
            pass
        finally:
            self.found = None
        missing = [name for name in self.names if name not in found]
        if missing:
            raise JointError(f"{type(network).__name__} did not call its module '{missing[0]}' or got no tensor of it")
        return [found[name] for name in self.names]

    def _keep(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.found is None or not isinstance(output, Tensor):  # also when checkpointing computes a part again
            return
        self.found[name] = output
        if len(self.found) == len(self.names):
            raise _Complete


class _Complete(Exception):  # noqa: N818 - no error: how a run ends
    """Every tap has its tensor."""
