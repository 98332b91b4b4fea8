"""Where two recipes, or parts of them, differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskmed_zoo.recipe.schema import Recipe

COSTS = ("accumulate", "save_minutes", "checkpointing", "compile", "channels_last", "cudnn_benchmark")
"""Settings of `train` that change what a step costs, and its numbers by no more than rounding."""


def what_trains(recipe: Recipe) -> dict[str, Any]:
    """The content of a recipe but for what changes nothing in the training: `evaluation`, and the costs of a step."""
    costs = dict.fromkeys(COSTS, True) | {"optimizer": {"fused"}}
    return recipe.model_dump(mode="json", exclude={"evaluation": True, "train": costs})


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first setting that differs, in words, of two JSON-able contents; None where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if old == new else f"{path} was {old}, now {new}"
