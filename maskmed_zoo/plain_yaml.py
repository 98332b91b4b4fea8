"""YAML text that may come from anywhere: what stands in it is bounded before anything is made of it.

A few lines of YAML can mean gigabytes (aliases of aliases), a stack of a million lists, or an object of Python.
Recipes, grids, cards and `--set` values are read through `faults`, which goes over the text once and builds nothing.
"""

from __future__ import annotations

from typing import Any

import yaml

from maskmed_zoo.files import DEEPEST

LARGEST_YAML = 256 * 2**10
"""Bytes of a recipe, a grid or a card; the longest here have eight thousand."""
MOST_VALUES = 50_000
"""Keys, lists, mappings and values of a document, an alias counted as often as what it stands for."""
FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Open:
    """A list or mapping whose end has not come: its anchor, and how much and how deep it is so far."""

    def __init__(self, anchor: str | None) -> None:
        self.anchor, self.values, self.depth = anchor, 1, 1

    def take(self, values: int, depth: int) -> None:
        self.values, self.depth = self.values + values, max(self.depth, depth + 1)


def faults(text: str, source: str) -> list[str]:
    """What is refused in the text, each as `source:line:col: …`: tags, directives, and more than the limits.

    Raises `yaml.YAMLError` for text that is no YAML, as PyYAML itself words it: the fast parser is not as exact.
    """
    try:
        return _faults(text, source, FAST_LOADER)
    except yaml.YAMLError:
        if found := _faults(text, source, yaml.SafeLoader):
            return found
        raise


def _faults(text: str, source: str, loader: Any) -> list[str]:
    found: list[str] = []
    outside = _Open(None)
    stack, known = [outside], dict[str, tuple[int, int]]()
    for event in yaml.parse(text, loader):
        place = place_of(source, event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent) and (event.version or event.tags):
            found.append(f"{place}: a directive (%) is not allowed here; take that line out")
        if getattr(event, "tag", None) is not None:
            found.append(f"{place}: tag '{getattr(event, 'tag', '')}' is not allowed here; take it out")
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(event.anchor))
            stack[-2].take(0, 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = stack.pop()
            if done.anchor is not None:
                known[done.anchor] = done.values, done.depth
            stack[-1].take(done.values, done.depth)
        elif isinstance(event, yaml.AliasEvent):
            stack[-1].take(*known.get(event.anchor or "", (1, 0)))
        elif isinstance(event, yaml.ScalarEvent):
            stack[-1].take(1, 0)
        if len(stack) - 1 + stack[-1].depth > DEEPEST + 1:
            return [*found, f"{place}: nested more than {DEEPEST} levels deep; refused"]
        if sum(level.values for level in stack) > MOST_VALUES:
            return [*found, f"{place}: more than {MOST_VALUES} values up to here, aliases written out; refused"]
    return found


def place_of(source: str, mark: Any) -> str:
    """`source:line:col`, counted from 1."""
    return f"{source}:{mark.line + 1}:{mark.column + 1}"
