"""One registry for everything that has a name: components of every kind and the published models.

A name stands on a card, `registry/<kind>s/<name>.yaml`: facts, no code. Listing and describing read cards only;
the class behind a component card is imported on use. Cards of other packages are found through the entry-point group
`maskmed_zoo.components`: the entry point's value is the name of an importable package that holds a `registry/` folder
of the same shape; it is not imported for listing.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from maskmed_zoo import renamed
from maskmed_zoo.errors import RegistryError, nearest

if TYPE_CHECKING:
    from maskmed_zoo.contracts import Component

COMPONENT_KINDS = ("encoder", "neck", "decoder", "head", "loss")
KINDS = (*COMPONENT_KINDS, "model")
FOLDERS = {kind: "losses" if kind == "loss" else kind + "s" for kind in KINDS}
ENTRY_POINT_GROUP = "maskmed_zoo.components"
_FIELDS = {"summary", "target", "recipe", "paper", "section", "license", "needs", "deviations", "results", "weights"}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ComponentT = TypeVar("_ComponentT", bound="type[Component]")


@dataclass(frozen=True)
class Card:
    """Facts about one name. `target` (module:Class) for components, `recipe` (a path) for models."""

    name: str
    kind: str
    summary: str
    source: Path | None
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """Name, kind, summary and every other fact on the card."""
        return {"name": self.name, "kind": self.kind, "summary": self.summary, **self.facts}


def data_folder(name: str) -> Path:
    """The package's `registry` or `recipes` folder: inside the wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / f"_{name}", package.parent / name):
        if candidate.is_dir():
            return candidate
    raise RegistryError(f"no folder '{name}' with {package} or beside it: the installation is incomplete, reinstall")


def recipe_file(card: Card) -> Path:
    """The recipe of a model card: in the `recipes` folder beside the `registry` folder that holds the card."""
    if card.source is None or "recipe" not in card.facts:
        raise RegistryError(f"'{card.name}' is a {card.kind}, it has no recipe")
    root = card.source.parents[1]
    return root.with_name(root.name.replace("registry", "recipes")) / str(card.facts["recipe"])


class _Registry:
    """Cards by name, read on first use; classes registered at run time beside them."""

    def __init__(self) -> None:
        self._cards: dict[str, Card] | None = None
        self._classes: dict[str, type[Component]] = {}

    @property
    def cards(self) -> dict[str, Card]:
        if self._cards is None:
            plugins = [_plugin_folder(point.name, point.value) for point in entry_points(group=ENTRY_POINT_GROUP)]
            cards: dict[str, Card] = {}
            for root in (data_folder("registry"), *plugins):
                for kind, folder in FOLDERS.items():
                    for path in sorted((root / folder).glob("*.yaml")):
                        self._add(_read_card(path, kind), cards)
            self._cards = cards
        return self._cards

    def _add(self, card: Card, cards: dict[str, Card]) -> None:
        known = cards.get(card.name)
        if known is not None:
            raise RegistryError(
                f"the name '{card.name}' is registered twice: as {known.kind} by {known.source or 'register()'} and "
                f"as {card.kind} by {card.source or 'register()'}; names are unique across kinds, rename one"
            )
        cards[card.name] = card

    def add_class(self, card: Card, cls: type[Component]) -> None:
        self._add(card, self.cards)
        self._classes[card.name] = cls

    def find(self, name: str, kind: str | None = None) -> Card:
        card = self.cards.get(name)
        if card is None or (kind is not None and card.kind != kind):
            known = [c.name for c in self.cards.values() if kind in (None, c.kind)]
            what = kind or "component or model"
            other = f" ('{name}' is a {card.kind})" if card is not None else ""
            raise RegistryError(
                f"no {what} named '{name}'{other}{nearest(name, known)} (known: {', '.join(sorted(known))})"
            )
        return card

    def load(self, name: str, kind: str | None = None) -> type[Component]:
        card = self.find(name, kind)
        if name not in self._classes:
            self._classes[name] = _import_target(card)
        return self._classes[name]


def _plugin_folder(name: str, package: str) -> Path:
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "registry").is_dir():
            return Path(location) / "registry"
    raise RegistryError(
        f"entry point '{name}' of {ENTRY_POINT_GROUP} names '{package}', which is no package with a registry/ folder; "
        f"reinstall or uninstall that plug-in"
    )


def _read_card(path: Path, kind: str) -> Card:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _LOADER)  # a safe loader, in C where there is one
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RegistryError(f"{path}: card cannot be read: {' '.join(str(error).split())}") from error
    link = "recipe" if kind == "model" else "target"
    facts: dict[str, Any] = renamed.update_card(content, str(path)) if isinstance(content, dict) else {}
    if not {"summary", link} <= facts.keys() <= _FIELDS:
        raise RegistryError(f"{path}: a {kind} card needs 'summary' and '{link}' and may hold {sorted(_FIELDS)}")
    return Card(path.stem, kind, str(facts.pop("summary")), path, facts)


def _import_target(card: Card) -> type[Component]:
    module, _, attribute = str(card.facts["target"]).partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RegistryError(f"{card.source}: target '{card.facts['target']}' cannot be imported: {error}") from error
    _check_class(card.name, card.kind, cls)
    return cls


def _check_class(name: str, kind: str, cls: Any) -> None:
    from maskmed_zoo import contracts

    base = getattr(contracts, kind.capitalize())
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise RegistryError(f"{kind} '{name}' must be a subclass of maskmed_zoo.contracts.{base.__name__}, got {cls!r}")
    kind_field = cls.Config.model_fields.get("kind")
    if kind_field is None or kind_field.default != name:
        raise RegistryError(f"{kind} '{name}': its Config must have the field kind: Literal['{name}'] = '{name}'")


_REGISTRY = _Registry()


def names(kind: str | None = None) -> list[str]:
    """Sorted names, of one kind or of all."""
    return [card.name for card in find(kind=kind)]


def find(pattern: str = "*", *, kind: str | None = None) -> list[Card]:
    """Cards whose name matches the shell wildcard `pattern`, sorted by kind, then name.

    Raises `RegistryError` for a kind that does not exist.
    """
    if kind is not None and kind not in KINDS:
        raise RegistryError(f"no kind '{kind}'{nearest(kind, KINDS)} (kinds: {', '.join(KINDS)})")
    cards = [c for c in _REGISTRY.cards.values() if kind in (None, c.kind) and fnmatch.fnmatchcase(c.name, pattern)]
    return sorted(cards, key=lambda card: (KINDS.index(card.kind), card.name))


def card(name: str, kind: str | None = None) -> Card:
    """The card of `name`; raises `RegistryError` with the nearest name if there is none."""
    return _REGISTRY.find(name, kind)


def component(name: str, kind: str | None = None) -> type[Component]:
    """The class behind a component's name, imported on use."""
    return _REGISTRY.load(name, kind)


def register(name: str, *, kind: str, summary: str = "") -> Callable[[_ComponentT], _ComponentT]:
    """Class decorator that registers a component at run time; packages use cards and the entry point instead.

    Raises `RegistryError` if the name is taken, the kind unknown or the class does not keep the contract.
    """
    if kind not in COMPONENT_KINDS:
        raise RegistryError(
            f"no component kind '{kind}'{nearest(kind, COMPONENT_KINDS)} ({', '.join(COMPONENT_KINDS)})"
        )

    def add(cls: _ComponentT) -> _ComponentT:
        _check_class(name, kind, cls)
        target = f"{cls.__module__}:{cls.__qualname__}"
        _REGISTRY.add_class(
            Card(name, kind, summary or (cls.__doc__ or name).strip().splitlines()[0], None, {"target": target}), cls
        )
        return cls

    return add
