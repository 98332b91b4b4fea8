"""A recipe as YAML with a comment above each number that was planned."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.strict_yaml import in_line

_WIDTH = 118
_STEP = 2
SHOWN = (
    "schema_version",
    "name",
    "train.epochs",
    "train.iterations_per_epoch",
    "train.batch_size",
    "inference.overlap",
)
"""Settings that are written though they be the defaults, beside those that have a comment and every `kind`."""


def commented(recipe: Recipe, header: str, comments: Mapping[str, str]) -> str:
    """The recipe without its defaults, but for `SHOWN` and what `comments`, by path (`data.spacing`), explain."""
    lines = [f"#{' ' * bool(line)}{line}" for line in header.split("\n")]
    lines += _section(_content(recipe, (), comments), (), comments)
    return "\n".join(lines) + "\n"


def _content(model: BaseModel, path: tuple[str, ...], comments: Mapping[str, str]) -> dict[str, Any]:
    plain, result = model.model_dump(mode="json"), dict[str, Any]()
    fields = type(model).model_fields
    for name in sorted(fields, key=lambda name: name != "kind"):
        value, here = getattr(model, name), ".".join((*path, name))
        is_own = fields[name].is_required() or value != fields[name].get_default(call_default_factory=True)
        if is_own or name == "kind" or here in comments or here in SHOWN:
            inside = isinstance(value, BaseModel)
            result[name] = _content(value, (*path, name), comments) if inside else plain[name]
    return result


def _section(content: Mapping[str, Any], path: tuple[str, ...], comments: Mapping[str, str]) -> list[str]:
    indent, lines = " " * _STEP * len(path), list[str]()
    for key, value in content.items():
        if not path and key not in ("schema_version", "name"):
            lines.append("")
        if comment := comments.get(".".join((*path, key))):
            mark = f"{indent}# "
            lines += textwrap.wrap(comment, _WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)
        if isinstance(value, dict) and value:
            lines += [f"{indent}{in_line(key)}:", *_section(cast(dict[str, Any], value), (*path, key), comments)]
        else:
            lines.append(f"{indent}{in_line(key)}: {in_line(_short(value))}")
    return lines


def _short(value: Any) -> Any:
    """Strides and kernels in which (z, y, x) are the same number as that number."""
    if not isinstance(value, list):
        return value
    several = cast(list[Any], value)
    return [x[0] if isinstance(x, list) and x == x[:1] * 3 else x for x in several]
