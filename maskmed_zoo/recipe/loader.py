"""From a name or a file to a checked `Recipe`: reading, overriding, and saying what is wrong in one go."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from maskmed_zoo import registry, renamed
from maskmed_zoo.arguments import shown
from maskmed_zoo.errors import ArgumentError, RecipeError, nearest
from maskmed_zoo.files import DEEPEST, check_depth
from maskmed_zoo.plain_yaml import LARGEST_YAML
from maskmed_zoo.recipe import strict_yaml
from maskmed_zoo.recipe.find import recipe_path
from maskmed_zoo.recipe.schema import Recipe, recipe_type_for
from maskmed_zoo.recipe.strict_yaml import Document, KeyPath

LONGEST_GOT = 200
"""Characters of a wrong value that are shown."""
_ModelT = TypeVar("_ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Override:
    """`a.b=value` that stands elsewhere than on the command line; `place` is where, for messages."""

    text: str
    place: str


def load_recipe(
    source: str | Path | Recipe,
    overrides: Sequence[str | Override] | Mapping[str, Any] = (),
    *,
    unread: Sequence[str] = (),
) -> Recipe:
    """Read and check a recipe, given by name, path or as one already loaded.

    `overrides` are `"a.b=value"` texts (the value is YAML) or a mapping from `a.b` to plain values. Setting a
    component's `kind` to another one keeps the settings that both have from the config they are derived from, as the
    width of everything made of transformer blocks, and drops the others: equal names alone promise no equal meaning.
    Of the components, those that the recipe names are imported, but those `unread`, whose settings are not checked.
    Raises `RecipeError` holding every problem, each with file:line:col, the key, and the nearest name.
    """
    if isinstance(source, Recipe):
        document = Document("", "recipe")
        document.data = source.model_dump(mode="json")
    else:
        document = strict_yaml.read(recipe_path(source))
    if not isinstance(document.data, dict):
        raise RecipeError(f"{document.source}:1:1: a recipe is a mapping with schema_version, name, model, …")
    if "rows" in document.data and "model" not in document.data:
        raise RecipeError(f"{document.place(('rows',))}: rows: this is a grid of 'ablate', no recipe; ablate runs it")
    for key, value, text in _parse_overrides(overrides):
        _override(document, key, value, text)
    return _checked(document, unread)


def parse_recipe(content: Mapping[str, Any], place: str, *, unread: Sequence[str] = ()) -> Recipe:
    """Check what `Recipe.model_dump` gave, perhaps of an earlier version; `place` is where it stands, for messages."""
    document = Document("", place)
    document.data = copy.deepcopy(dict(content))
    return _checked(document, unread)


def _checked(document: Document, unread: Sequence[str]) -> Recipe:
    renamed.update_recipe(document.data, document.place)
    return validated(document, recipe_type_for(document.data, unread))


def validated(document: Document, model: type[_ModelT]) -> _ModelT:
    """The document as a `model`; raises `RecipeError` holding every problem, with place, key and nearest name."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(_problems(document, model, [dict(e) for e in error.errors()])) from error


def by_keyword(function: str, keywords: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Overrides by path of keywords with `__` for the dot.

    Raises `ArgumentError` for a word that is neither, with the argument or the setting that was meant.
    """
    for key in keywords:
        if "__" not in key and key not in Recipe.model_fields:
            sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
            known = [f"{name}__{setting}" for name, section in sections.items() for setting in _settings(section)]
            meant = [path for path in known if path.endswith(f"__{key}")] or [*arguments, *known]
            hint = f"; did you mean '{meant[0]}'?" if len(meant) == 1 else nearest(key, meant)
            raise ArgumentError(
                f"{function}: no argument '{key}'{hint}; settings of the recipe are given by path: train__epochs=10"
            )
    return {key.replace("__", "."): value for key, value in keywords.items()}


def _settings(section: Any) -> list[str]:
    return [name for model in _models(section) for name in model.model_fields]


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML text: every default written out."""
    return strict_yaml.dump(recipe.model_dump(mode="json"))


def keys_of(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The settings that overrides name, as `train.epochs`; their values need not be right."""
    return [*overrides] if isinstance(overrides, Mapping) else [text.partition("=")[0] for text in overrides]


def _parse_overrides(overrides: Any) -> list[tuple[KeyPath, Any, str]]:
    if isinstance(overrides, Mapping):
        return [
            (_key_path(key, f"override {key}"), _plain(value, key), f"override {key}")
            for key, value in overrides.items()
        ]
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise ArgumentError(f"overrides: expected a mapping such as {{'train.epochs': 10}}, got {shown(overrides)}")
    parsed: list[tuple[KeyPath, Any, str]] = []
    for given in overrides:
        if not isinstance(given, str | Override):
            raise ArgumentError(f"overrides: expected texts such as 'train.epochs=10', got {shown(given)}")
        override = given if isinstance(given, Override) else Override(given, f"--set {given}")
        key, equals, value = override.text.partition("=")
        if not equals:
            raise RecipeError(f"{override.place}: expected key.key=value, for example train.epochs=10")
        source = override.place if isinstance(given, Override) else f"--set {key}"
        if len(value.encode("utf-8", "replace")) > LARGEST_YAML:
            raise RecipeError(f"{source}: a value of more than {LARGEST_YAML} bytes; refused")
        parsed.append((_key_path(key, override.place), Document(value, source).data, override.place))
    return parsed


def _key_path(key: Any, place: str) -> KeyPath:
    path = key.split(".") if isinstance(key, str) else []
    if not path or not all(path) or len(path) > DEEPEST:
        raise RecipeError(f"{place}: expected the path of a setting, as train.epochs, of at most {DEEPEST} keys")
    return tuple(path)


def _plain(value: Any, key: str) -> Any:
    """A value given in Python, which stays the caller's."""
    check_depth(value, f"override {key}", error=RecipeError)
    return copy.deepcopy(value) if isinstance(value, dict | list) else value


def _override(document: Document, path: KeyPath, value: Any, text: str) -> None:
    target = document.data
    for depth, key in enumerate(path[:-1]):
        if target.get(key) is None:
            target[key] = {}
            document.places[path[: depth + 1]] = text
        target = target[key]
        if not isinstance(target, dict):
            raise RecipeError(f"{text}: '{'.'.join(map(str, path[: depth + 1]))}' is a value, it has no keys inside")
    is_kind = path[-1] == "kind" and len(path) == 3 and path[0] == "model" and isinstance(value, str)
    if is_kind and target.get("kind") != value:
        kept = _kept_settings(str(path[1]), target.get("kind"), value)
        target = document.data["model"][path[1]] = {key: held for key, held in target.items() if key in kept}
    target[path[-1]] = value
    document.places = {known: place for known, place in document.places.items() if known[: len(path)] != path}
    document.places[path] = text


def _kept_settings(part: str, old: Any, new: Any) -> set[str]:
    """Names of the settings that stay when a component gives way to another of its kind."""
    known = registry.names(part) if part in registry.COMPONENT_KINDS else []
    if old not in known or new not in known:
        return set()
    before, after = registry.component(old, part).Config, registry.component(new, part).Config
    return set(next(base for base in before.__mro__ if issubclass(after, base)).model_fields)


def _problems(document: Document, model: type[BaseModel], errors: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each place that is wrong; what would have been right there, if there are several ways, joined."""
    messages: dict[str, list[str]] = {}
    for error in errors:
        where, message = _problem(document, model, error)
        messages.setdefault(where, []).append(message)
    return [f"{where}{'; or '.join(dict.fromkeys(found))}" for where, found in messages.items()]


def _problem(document: Document, model: type[BaseModel], error: dict[str, Any]) -> tuple[str, str]:
    """Where (place and key) and what, for one pydantic error."""
    kind, context = error["type"], error.get("ctx", {})
    path = _data_path(document.data, error["loc"], kind in ("missing", "extra_forbidden"))
    path = (*path, "kind") if kind == "union_tag_invalid" else path
    key = ".".join(map(str, path))
    if kind == "extra_forbidden":
        known = _known_keys(model, document.data, path[:-1])
        message = "unknown key" + (nearest(str(path[-1]), known) or f" (known: {', '.join(known)})")
    elif kind == "missing":
        message = "is missing"
    elif kind in ("union_tag_invalid", "literal_error"):
        got = context["tag"] if kind == "union_tag_invalid" else error["input"]
        known = [
            name.strip().strip("'") for name in _choices(str(context.get("expected_tags", context.get("expected"))))
        ]
        message = f"'{got}' is not one of {', '.join(known)}{nearest(str(got), known)}"
    elif kind == "union_tag_not_found":
        message = "needs a 'kind'"
    else:
        text = error["msg"].removeprefix("Value error, ")
        message = text[:1].lower() + text[1:] + _got(error)
    return f"{document.place(path)}: {key}: " if key else f"{document.place(path)}: ", message


def _got(error: dict[str, Any]) -> str:
    if error["type"] == "value_error":
        return ""
    got = " ".join(repr(error["input"]).split())
    return f", got {got if len(got) <= LONGEST_GOT else got[:LONGEST_GOT] + ' …'}"


def _choices(text: str) -> list[str]:
    return text.replace(" or ", ", ").split(", ")


def _data_path(data: Any, loc: Sequence[str | int], is_key: bool) -> KeyPath:
    """The error's location in the data: without what pydantic puts in between, tags and types of unions.

    `is_key`: the location ends with a key that may be missing from the data.
    """
    path: list[str | int] = []
    for index, step in enumerate(loc):
        is_tag = isinstance(data, dict) and step not in data and data.get("kind") == step
        if is_tag:
            continue
        path.append(step)
        try:
            data = data[step]
        except (LookupError, TypeError):
            return tuple(path) if is_key and index == len(loc) - 1 else tuple(path[:-1])
    return tuple(path)


def _known_keys(model: type[BaseModel], data: Any, path: KeyPath) -> list[str]:
    """Keys that the section, component or entry at `path` may have."""
    inside: Any = model
    for step in path:
        data = data[step]
        if get_origin(inside) is dict:
            inside = get_args(inside)[1]
            continue
        annotation = inside.model_fields[step].annotation
        candidates = _models(annotation)
        fitting = [m for m in candidates if len(candidates) == 1 or m.model_fields["kind"].default == data.get("kind")]
        inside = fitting[0] if fitting else annotation
    return sorted(inside.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models in an annotation."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [m for part in get_args(annotation) for m in _models(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
