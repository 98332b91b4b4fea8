"""The labels of a data set, a recipe or a label map: which names have which values, checked once and passed along.

'background' has the value 0. 'ignore', if there is one, marks voxels that count neither in training nor in evaluation;
it has the highest value and is no class. Names carry the meaning: where two sets number the same names differently,
`renumbering` leads from one to the other.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import CoreSchema, core_schema

BACKGROUND, IGNORE = "background", "ignore"
HIGHEST = 2**15 - 1
"""The largest value: label maps are kept as int16."""


_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_visible(name: str) -> bool:
    """Whether a name can be told by looking at it: it is not blank, and nothing in it ends or turns the line."""
    return bool(name.strip()) and not any(unicodedata.category(c) in _UNSEEN or c in _TURNING for c in name)


class LabelsError(ValueError):
    """Names and values that are no set of labels: what is wrong (`cause`), and what to do about it (`remedy`)."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause, self.remedy = cause, remedy


class Labels(Mapping[str, int]):
    """An immutable mapping of label names to values, 'ignore' included, in the order of the values.

    Raises `LabelsError` unless names can be read, values are whole numbers up to `HIGHEST`, 'background' is 0,
    'ignore', if any, is the highest, there is a foreground label, and, unless `gaps` are allowed, the values are
    0, 1, 2, ….
    """

    def __init__(self, values: Mapping[str, int], *, gaps: bool = False) -> None:
        plain = {name: int(value) if isinstance(value, np.integer) else value for name, value in values.items()}
        _check(plain, gaps)
        self._values = dict(sorted(plain.items(), key=lambda item: item[1]))
        self.names = tuple(name for name in self._values if name != IGNORE)
        """Names of the classes, background first; their places are the classes of a network."""
        self.foreground = {name: self._values[name] for name in self.names[1:]}
        """Values by name, without background and 'ignore'."""
        self.ignore = self._values.get(IGNORE)
        """Value of the voxels that do not count, None without any."""

    @classmethod
    def found(cls, values: Iterable[int]) -> Labels:
        """Labels of a map that nothing describes, named `label_1`, `label_2`, … by the values above 0."""
        return cls({BACKGROUND: 0} | {f"label_{value}": value for value in sorted(set(values) - {0})}, gaps=True)

    @classmethod
    def merged(cls, sets: Iterable[Labels]) -> Labels:
        """One set for several: the first one's names in their order, the new ones of each next, 'ignore' at the end."""
        sets = tuple(sets)
        names = list(dict.fromkeys(name for labels in sets for name in labels.names))
        ignore = [IGNORE] if any(labels.ignore is not None for labels in sets) else []
        return cls({name: value for value, name in enumerate([*names, *ignore])})

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Left/right pairs: names that differ in left and right alone, the left one first."""
        candidates = ((name, name.replace("left", "right").replace("Left", "Right")) for name in self.names)
        return tuple((name, other) for name, other in candidates if other != name and other in self._values)

    def renumbering(self, other: Mapping[str, int]) -> NDArray[np.int16]:
        """Table from own values to those that `other` gives the same names; names that it lacks become 0."""
        table = np.zeros(max(self._values.values()) + 1, np.int16)
        for name, value in self._values.items():
            table[value] = other.get(name, 0)
        return table

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """In recipes: read from a mapping, written as one."""
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.dict_schema(core_schema.str_schema(), core_schema.int_schema()),
            serialization=core_schema.plain_serializer_function_ser_schema(dict),
        )


def _check(values: Mapping[str, int], gaps: bool) -> None:
    given: Mapping[Any, Any] = values
    for name, value in given.items():
        if not isinstance(name, str) or not is_visible(name):
            raise LabelsError(f"a label is called {name!r}", "give it a name of letters that can be seen")
        if type(value) is not int or value < 0:
            raise LabelsError(f"label '{name}' has value {value!r}", f"expected an integer as in {_pair(name, value)}")
        if value > HIGHEST:
            raise LabelsError(f"label '{name}' has value {value}", f"expected at most {HIGHEST}; renumber the labels")
    _check_reserved(values)
    twice = {value for value, count in Counter(values.values()).items() if count > 1}
    if twice:
        names = ", ".join(f"'{name}'" for name, value in values.items() if value == min(twice))
        raise LabelsError(f"{names} have the same value {min(twice)}", "give each label a value of its own")
    if not gaps and sorted(values.values()) != list(range(len(values))):
        raise LabelsError(
            f"label values must be 0, 1, 2, … without gaps, got {sorted(values.values())}",
            "renumber the labels and the label maps",
        )
    if IGNORE in values and values[IGNORE] != max(values.values()):
        raise LabelsError(
            f"the 'ignore' label must have the highest value, it has {values[IGNORE]} of {max(values.values())}",
            "exchange it with the last label, there and in the label maps",
        )
    if not values.keys() - {BACKGROUND, IGNORE}:
        raise LabelsError("there is no foreground label", "labels need at least one beside background")


def _pair(name: str, value: Any) -> str:
    """What the entry of a label should have been: a number without quotes, or name and value exchanged."""
    text = value.strip() if isinstance(value, str) else ""
    if max(len(name), len(text)) > 99:
        value = 1
    elif name.isdecimal() and text and not text.isdecimal():
        name, value = text, int(name)
    elif text.isdecimal():
        value = int(text)
    elif isinstance(value, float) and value.is_integer() and value >= 0:
        value = int(value)
    else:
        value = 1
    return f'"{name}": {value}'


def _check_reserved(values: Mapping[str, int]) -> None:
    """Raise `LabelsError` unless 'background' is 0, and for other spellings of the two names that have a meaning."""
    for name, value in values.items():
        known = next((k for k in (BACKGROUND, IGNORE) if name.strip().casefold() == k and name != k), None)
        if known in values:
            raise LabelsError(f"there are '{known}' and '{name}'", "give one of them another name")
        if known == BACKGROUND and value != 0:
            raise LabelsError(
                f"'{name}' has the value {value}, expected '{BACKGROUND}: 0'",
                f"rename it to '{BACKGROUND}' and give it the value 0, there and in the label maps",
            )
        if known == IGNORE:
            raise LabelsError(f"a label is called '{name}'", f"rename it to '{IGNORE}' if its voxels do not count")
    if values.get(BACKGROUND) == 0:
        return
    zero = next((name for name, value in values.items() if value == 0), None)
    if BACKGROUND in values:
        remedy = "give it the value 0, there and in the label maps"
        raise LabelsError(f"'{BACKGROUND}' has the value {values[BACKGROUND]}", remedy)
    if zero is not None:
        raise LabelsError(
            f"labels need '{BACKGROUND}: 0', the value 0 is called '{zero}'",
            f"rename '{zero}' to '{BACKGROUND}'; the label maps stay as they are",
        )
    raise LabelsError(f"labels need '{BACKGROUND}: 0'", "add it")
