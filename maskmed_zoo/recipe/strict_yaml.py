"""YAML without traps, and with the place of every value.

Scalars follow the YAML 1.2 core schema: `3e-4` is a number, `no` and `1:30` are strings. Duplicate keys, keys that are
not strings, merge keys and numbers that no computer holds are refused, all of them at once, with file, line and column;
so are, before them, tags and whatever exceeds the limits of `plain_yaml`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from maskmed_zoo.errors import RecipeError
from maskmed_zoo.files import read_text
from maskmed_zoo.plain_yaml import FAST_LOADER, LARGEST_YAML, faults, place_of

KeyPath = tuple[str | int, ...]
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "True": True, "false": False, "False": False}


class Document:
    """Plain data read from YAML text, and where each value of it stands."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.problems: list[str] = []
        self._open: set[int] = set()
        self.places: dict[KeyPath, str] = {(): f"{source}:1:1"}
        node = self._compose(text)
        self.data: Any = None if node is None else self._value(node, ())
        if self.problems:
            raise RecipeError(self.problems)

    def place(self, path: KeyPath) -> str:
        """`file:line:col` of the value at `path`, or of the nearest thing around it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            if found := faults(text, self.source):
                raise RecipeError(found)
            return yaml.compose(text, FAST_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = place_of(self.source, mark) if mark else self.source
            raise RecipeError(f"{place}: not valid YAML: {error.problem or error.context}") from error
        except (yaml.YAMLError, UnicodeEncodeError) as error:
            raise RecipeError(f"{self.source}: not valid YAML: {' '.join(str(error).split())}") from error

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places.setdefault(path, place_of(self.source, node.start_mark))
        if id(node) in self._open:
            self.problems.append(f"{place_of(self.source, node.start_mark)}: an alias stands inside its own anchor")
            return None
        self._open.add(id(node))
        try:
            return self._content(node, path)
        finally:
            self._open.remove(id(node))

    def _content(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
        value = scalar(node.value) if _is_plain(node) else node.value
        if isinstance(value, float) and math.isinf(value):
            place = place_of(self.source, node.start_mark)
            self.problems.append(f"{place}: '{node.value}' is no finite number of this computer; give a smaller one")
        return value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            place = place_of(self.source, key_node.start_mark)
            is_text = isinstance(key_node, yaml.ScalarNode)
            key = key_node.value if is_text else "?"
            if key == "<<" and _is_plain(key_node):
                self.problems.append(f"{place}: a merge key (<<) is not allowed here; write the keys out")
            elif not is_text or (_is_plain(key_node) and not isinstance(scalar(key), str)):
                self.problems.append(f"{place}: key '{key}' must be text; put it in quotes")
            elif key in result:
                first = self.places[(*path, key)].removeprefix(f"{self.source}:")
                self.problems.append(f"{place}: duplicate key '{key}', first given at {first}; remove one")
            else:
                self.places[(*path, key)] = place
                result[key] = self._value(child, (*path, key))
        return result


def scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text) and len(text) < 1000:  # beyond, int() refuses
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read(path: Path) -> Document:
    """The YAML file at `path`; raises `RecipeError` with file:line:col for every problem in it."""
    return Document(read_text(path, largest=LARGEST_YAML, error=RecipeError), str(path))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """What stands in two places is written twice."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "'" if not isinstance(scalar(value), str) else None if value.isprintable() else '"'  # the last one escapes
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _text)


def dump(data: Any) -> str:
    """YAML text that `Document` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def in_line(value: Any) -> str:
    """A value, or a key, as it stands in one line of YAML; `Document` reads it back."""
    options: dict[str, Any] = {"sort_keys": False, "default_flow_style": True, "width": 2**31, "allow_unicode": True}
    return yaml.dump([value], Dumper=_Dumper, **options).strip()[1:-1]


def _is_plain(node: yaml.Node) -> bool:
    """Whether a scalar stands without quotes."""
    return isinstance(node, yaml.ScalarNode) and node.style in (None, "")
