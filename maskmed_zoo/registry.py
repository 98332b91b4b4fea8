"""One registry for everything that has a name: components of every kind and the published models.

A name stands on a card, `registry/<kind>s/<name>.yaml`: facts, no code. Listing and describing read cards only;
the class behind a component card is imported on use. Cards of other packages are those of `plugins`. One that is broken
or takes a name that exists is left out, with a warning: no package disables the others.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml

from maskmed_zoo import plugins, renamed
from maskmed_zoo.arguments import shown
from maskmed_zoo.errors import RegistryError, first_line, nearest, printable
from maskmed_zoo.files import read_text
from maskmed_zoo.plain_yaml import FAST_LOADER, LARGEST_YAML, faults

if TYPE_CHECKING:
    from maskmed_zoo.contracts import Component

COMPONENT_KINDS = ("encoder", "neck", "decoder", "head", "loss")
KINDS = (*COMPONENT_KINDS, "model")
FOLDERS = {kind: "losses" if kind == "loss" else kind + "s" for kind in KINDS}
MOST_CARDS = 500
"""Of one plug-in."""
_FIELDS = {"summary", "target", "recipe", "paper", "section", "license", "needs", "deviations", "results", "weights"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
log = logging.getLogger(__name__)
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
            cards: dict[str, Card] = {}
            for card in _read_cards(data_folder("registry")):
                self._add(card, cards)
            for plug_in in plugins.plug_ins():
                self._add_plug_in(plug_in, cards)
            self._cards = cards
        return self._cards

    def _add_plug_in(self, plug_in: plugins.PlugIn | RegistryError, cards: dict[str, Card]) -> None:
        """All cards of a plug-in, or none and a warning."""
        both = dict(cards)
        try:
            if isinstance(plug_in, RegistryError):
                raise plug_in
            for card in _read_cards(plug_in.registry(), most=MOST_CARDS):
                self._add(card, both)
        except Exception as error:  # whatever is wrong with it, the others are used
            log.warning("plug-in %s is left out: %s", getattr(plug_in, "distribution", ""), printable(str(error)))
        else:
            cards.update(both)

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

    def load_all(self, kind: str) -> list[type[Component]]:
        own = data_folder("registry")
        found: list[type[Component]] = []
        for card in sorted((card for card in self.cards.values() if card.kind == kind), key=lambda card: card.name):
            try:
                found.append(self.load(card.name, kind))
            except RegistryError as error:
                if card.source is None or card.source.is_relative_to(own):
                    raise
                log.warning("%s '%s' is left out: %s", kind, card.name, printable(str(error)))
                del self.cards[card.name]
        return found


def _read_cards(root: Path, most: int | None = None) -> list[Card]:
    """The cards in a registry folder; raises `RegistryError` for one that is broken."""
    cards: list[Card] = []
    for kind, folder in FOLDERS.items():
        plugins.check_folder(root / folder, root)
        for path in sorted((root / folder).glob("*.yaml")):
            cards.append(read_card(path, kind))
            if most is not None and len(cards) > most:
                raise RegistryError(f"{root}: more than {most} cards")
    return cards


def read_card(path: Path, kind: str) -> Card:
    text = read_text(path, largest=LARGEST_YAML, error=RegistryError)
    try:
        if wrong := faults(text, str(path)):
            raise RegistryError(wrong[0])
        content = yaml.load(text, FAST_LOADER)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # beside the first: dates and keys that are none
        raise RegistryError(f"{path}: card cannot be read: {' '.join(str(error).split())}") from error
    link = "recipe" if kind == "model" else "target"
    facts: dict[str, Any] = renamed.update_card(content, str(path)) if isinstance(content, dict) else {}
    if not {"summary", link} <= facts.keys() <= _FIELDS:
        raise RegistryError(f"{path}: a {kind} card needs 'summary' and '{link}' and may hold {sorted(_FIELDS)}")
    if not _NAME.fullmatch(path.stem):
        raise RegistryError(f"{path}: a card's name has up to 100 letters, digits, '-', '_' and '.'; rename it")
    _check_facts(path, kind, facts)
    return Card(path.stem, kind, str(facts.pop("summary")), path, facts)


def _check_facts(path: Path, kind: str, facts: dict[str, Any]) -> None:
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RegistryError(f"{path}: a card holds texts, numbers, lists and mappings, but {error}") from error
    parts = Path(str(facts.get("recipe"))).parts
    if kind == "model" and (not isinstance(facts["recipe"], str) or ".." in parts or Path(*parts).is_absolute()):
        raise RegistryError(f"{path}: recipe: expected a path inside the recipes folder, got {facts['recipe']!r}")
    if kind != "model" and not _TARGET.fullmatch(str(facts["target"])):
        raise RegistryError(f"{path}: target: expected 'module:Class', got {facts['target']!r}")


def _import_target(card: Card) -> type[Component]:
    module, _, attribute = str(card.facts["target"]).partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        why = first_line(error)
        raise RegistryError(f"{card.source}: target '{card.facts['target']}' cannot be imported: {why}") from error
    _check_class(card.name, card.kind, cls)
    return cls


def _check_class(name: str, kind: str, cls: Any) -> None:
    from maskmed_zoo import contracts

    base = getattr(contracts, kind.capitalize())
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise RegistryError(
            f"{kind} '{name}' must be a subclass of maskmed_zoo.contracts.{base.__name__}, got {shown(cls)}"
        )
    config: Any = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, contracts.ComponentConfig)):
        raise RegistryError(f"{kind} '{name}': its Config must be a subclass of maskmed_zoo.contracts.ComponentConfig")
    kind_field = config.model_fields.get("kind")
    if kind_field is None or kind_field.default != name or get_args(kind_field.annotation) != (name,):
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


def components(kind: str) -> list[type[Component]]:
    """The classes of a kind, by name, all of them imported; those of plug-ins that cannot be are left out and named."""
    return _REGISTRY.load_all(kind)


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
