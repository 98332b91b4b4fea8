"""Where two recipes, or parts of them, differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskmed_zoo.recipe.schema import Recipe


def what_trains(recipe: Recipe) -> dict[str, Any]:
    """The content of a recipe but for `evaluation` and how often it saves: with others it is the same training."""
    return recipe.model_dump(mode="json", exclude={"evaluation": True, "train": {"save_minutes"}})


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first setting that differs, in words, of two JSON-able contents; None where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if old == new else f"{path} was {old}, now {new}"
