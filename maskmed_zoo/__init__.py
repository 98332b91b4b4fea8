"""maskmed-zoo: a component zoo for 3-D medical image segmentation.

```python
import maskmed_zoo as zoo

zoo.list("*amos*")
model = zoo.create("maskmed_amos")
```

Importing the package imports no torch; `create`, `attach_head` and `register` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Literal

    from torch import Tensor, nn

    from maskmed_zoo.attach import AttachedModel
    from maskmed_zoo.model import SegmentationModel
    from maskmed_zoo.recipe import Recipe
    from maskmed_zoo.weights.keys import KeyMap
    from maskmed_zoo.weights.load import LoadReport

__version__ = "0.1.0"
__all__ = ["attach_head", "create", "describe", "list", "load_recipe", "load_weights", "register"]


def create(
    name_or_recipe: str | Path | Recipe,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    pretrained: bool | str | Path = False,
    strict: bool = True,
    **overrides: Any,
) -> SegmentationModel:
    """The network of a recipe, with fresh weights or those of a file.

    Args:
        name_or_recipe: a model's name (`zoo.list(kind="model")`), a path to a recipe, or a loaded one.
        in_channels: input channels; default: the recipe's.
        num_classes: labels, background counted; default: the recipe's.
        pretrained: a file or an exported folder, see `load_weights`; True: the weights published on the model's card.
        strict: refuse weights that do not fit whole.
        **overrides: recipe settings by path, with `__` for the dot: `model__head__queries="per_stage"`.

    Raises `RecipeError` for a wrong name, key or value, `JointError` where two components do not fit, and
    `CheckpointError` for weights that cannot be had, read or fitted.
    """
    from maskmed_zoo.build import create as build

    model = build(name_or_recipe, in_channels, num_classes, overrides)
    if pretrained is not False:
        from maskmed_zoo.weights.published import published

        name = getattr(name_or_recipe, "name", None) or str(name_or_recipe)
        load_weights(model, published(name) if pretrained is True else pretrained, strict=strict)
    return model


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    keys: KeyMap | None = None,
    strict: bool = True,
    minimum: float = 0.5,
) -> LoadReport:
    """Fill a network from weights of this package, nnU-Net v2 or MONAI's SwinUNETR, and report.

    Args:
        model: a network of `create`, or any module.
        source: a `.safetensors`, `.pt` or `.pth` file, an exported folder, or a state dict.
        keys: a function from the file's state dict and the module to one under the module's names; default: recognised.
        strict: refuse what does not fit whole. Else input channels, classes and tables of positions are adapted.
        minimum: smallest share of the network's numbers that must come from the file, where not strict.

    Raises `CheckpointError`, with the model unchanged, for files that cannot be read or do not fit.
    """
    from maskmed_zoo.weights.load import load_weights as load

    return load(model, source, keys=keys, strict=strict, minimum=minimum)


def attach_head(
    network: nn.Module,
    head: str | Mapping[str, Any] = "masked_query",
    *,
    num_classes: int,
    in_channels: int | None = None,
    patch_size: tuple[int, int, int] = (64, 64, 64),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    stages: Sequence[str] | None = None,
    freeze: Literal["body"] | None = None,
) -> AttachedModel:
    """A finished network (b c d h w) -> (b k d h w), of MONAI or your own, with another head. Its weights stay loaded.

    Args:
        network: changed in place: its output convolution, and what the new head makes idle, is taken out.
        head: a head's name (`zoo.list(kind="head")`), or its settings with `kind`.
        num_classes: labels, background counted.
        in_channels: input channels; default: those of its first convolution.
        patch_size: a size (z, y, x) that the network takes and that its strides divide; nothing is computed for it.
        spacing: voxel size of the input in mm (z, y, x).
        stages: names of the modules whose outputs the head reads; default: what entered the output convolution, and
            the decoder's last features at every coarser resolution.
        freeze: "body" trains the head alone.

    Returns a module that is called like the network and gives a `HeadOutput`; `predict` gives log-probabilities.
    Raises `JointError` if the network does not take such an image or no features are found.
    """
    from maskmed_zoo.attach import attach_head as attach

    return attach(
        network,
        head,
        num_classes,
        in_channels=in_channels,
        patch_size=patch_size,
        spacing=spacing,
        stages=stages,
        freeze=freeze,
    )


def list(pattern: str = "*", *, kind: str | None = None) -> Sequence[str]:
    """Names of components and models that match a shell wildcard, of one kind or of all, sorted by kind and name."""
    from maskmed_zoo import registry

    return [card.name for card in registry.find(pattern, kind=kind)]


def describe(name: str) -> dict[str, Any]:
    """The facts on a component's or model's card. Raises `RegistryError` with the nearest name if there is none."""
    from maskmed_zoo import registry

    return registry.card(name).to_json()


def load_recipe(name_or_path: str | Path | Recipe, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A checked recipe by name or path, or of a loaded one; `overrides` maps "a.b" to values.

    Raises `RecipeError` with every problem.
    """
    from maskmed_zoo.recipe import load_recipe as load

    return load(name_or_path, overrides or {})


def register(name: str, *, kind: str, summary: str = "") -> Callable[[Any], Any]:
    """Class decorator that adds a component at run time; see CONTRIBUTING for the contract."""
    from maskmed_zoo import registry

    return registry.register(name, kind=kind, summary=summary)
