"""Keys and values that earlier versions spelled otherwise: both spellings are read, only the new one is written.

Whatever reads a file a user may have kept passes its content through here. An old word is replaced, and reported in
one line per file. Checksums made from a recipe's content keep the words they were first made with, so that runs and
ablations from before a renaming are found again.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

log = logging.getLogger(__name__)


class RenamedValue(NamedTuple):
    """A value at `path` in a recipe; inside a component it is renamed for the component `kind` alone."""

    path: tuple[str, ...]
    old: str
    new: str
    kind: str | None = None


RECIPE_VALUES = (
    RenamedValue(("data", "unannotated"), "marginalise", "marginalize"),
    RenamedValue(("model", "encoder", "inflation"), "centre", "center", kind="timm"),
)
LATER_SETTINGS: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("train", "freeze"), []),
    (("train", "ema"), None),
    (("train", "patience"), None),
    (("inference", "mirror"), False),
)
"""Of a recipe, by path: settings of later versions and the value at which all is as it was before them."""
CARD_KEYS = {"licence": "license"}
"""Of component cards and of the cards of exported weights, old to new."""


def update_recipe(data: Any, place: Callable[[tuple[str | int, ...]], str]) -> None:
    """Replace old values in a recipe's plain data; `place` says where the value at a path stands, for the report."""
    found: list[str] = []
    for value in RECIPE_VALUES:
        if _replace(data, value, value.old, value.new):
            found.append(f"{place(value.path)}: {'.'.join(value.path)}: '{value.old}' is now '{value.new}'")
    settings = _augmentation(data)
    if settings is not None and "kind" not in settings:
        settings["kind"] = "light"
        where = place(("data", "augmentation"))
        found.append(f"{where}: data.augmentation: settings without a kind are now those of 'light'")
    if found:
        log_once("; ".join(found))


def update_card(card: dict[str, Any], place: str) -> dict[str, Any]:
    """The content of a card with its old keys replaced; one that has the new key too keeps both."""
    old = [key for key in card if key in CARD_KEYS and CARD_KEYS[key] not in card]
    if old:
        log_once(f"{place}: " + ", ".join(f"'{key}' is now '{CARD_KEYS[key]}'" for key in old))
    return {CARD_KEYS[key] if key in old else key: value for key, value in card.items()}


def as_first_written(recipe: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's plain data, or of some of its sections, in its first words: what checksums are made of.

    Settings that came later are left out where they change nothing.
    """
    result = copy.deepcopy(recipe)
    for value in RECIPE_VALUES:
        _replace(result, value, value.new, value.old)
    settings = _augmentation(result)
    if settings and settings.get("kind") == "light":
        del settings["kind"]
    for (section, key), default in LATER_SETTINGS:
        held = result.get(section)
        if isinstance(held, dict) and held.get(key) == default:
            held.pop(key, None)
    return result


@cache
def log_once(line: str) -> None:
    """Log that an old word was read; once in a process, because files are read more than once."""
    log.warning("%s; both are read, the new one is written", line)


def _augmentation(data: Any) -> dict[str, Any] | None:
    """`data.augmentation` of a recipe's plain data; before there were two kinds of it, it had none."""
    section = data.get("data") if isinstance(data, dict) else None
    settings = section.get("augmentation") if isinstance(section, dict) else None
    return settings if isinstance(settings, dict) else None


def _replace(data: Any, value: RenamedValue, before: str, after: str) -> bool:
    """Put `after` in the place of `before`; returns whether it stood there."""
    for key in value.path[:-1]:
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, dict) or data.get(value.path[-1]) != before:
        return False
    if value.kind is not None and data.get("kind") != value.kind:
        return False
    data[value.path[-1]] = after
    return True
