"""What a person called a recipe, and the file that was meant: a model's name, a path, or what else has a name."""

from __future__ import annotations

import os
from pathlib import Path

from maskmed_zoo import registry
from maskmed_zoo.arguments import shown
from maskmed_zoo.errors import ArgumentError, RecipeError, nearest
from maskmed_zoo.files import is_file, is_folder

NAMES = "'maskmed-zoo list --kind model', or zoo.list(kind='model'), names those built in"
YAML = (".yaml", ".yml")
_WEIGHTS = (".safetensors", ".pt", ".pth")


def recipe_path(name_or_path: object) -> Path:
    """The file a recipe's name (on a model card) or path stands for.

    Raises `RecipeError` if there is neither, saying what else the name stands for, and `ArgumentError` for what is no
    name at all.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise ArgumentError(f"expected a model's name, a path or a recipe, got {shown(name_or_path)}; {NAMES}")
    name, path = str(name_or_path), Path(name_or_path)
    cards = {card.name: card for card in registry.find(kind="model")}
    if name in cards:
        return registry.recipe_file(cards[name])
    if path.suffix in YAML and is_file(path):
        return path
    raise RecipeError(
        _instead(name, path) or f"no recipe named '{name}'{_meant(name, list(cards))}; {NAMES}, or give a .yaml"
    )


def is_path(name: str) -> bool:
    """Whether a text is meant for a file: it ends as a recipe does, or names a folder."""
    return Path(name).suffix in YAML or len(Path(name).parts) > 1


def component_hint(name: str) -> str | None:
    """What a component's name stands for, where it cannot be used."""
    found = next((card for card in registry.find() if card.name == name and card.kind != "model"), None)
    if found is None:
        return None
    return f"'{name}' is a {found.kind}, no model; a recipe names it as model.{found.kind}.kind; {NAMES}"


def _instead(name: str, path: Path) -> str | None:
    """What a name that is no recipe stands for, and where that can be used."""
    built_in = registry.names("model")
    cases = (
        (
            is_file(path / "recipe.yaml"),
            f"is a run or an exported folder, no recipe; zoo.load('{path}') segments with it, "
            f"zoo.create('{path / 'recipe.yaml'}', pretrained='{path}') gives its network",
        ),
        (
            is_file(path / "dataset.json"),
            f"is a data set, no recipe; recipes are trained on it: --data {path}, in Python data='{path}'",
        ),
        (is_folder(path), f"is a folder, no recipe; give a .yaml. {NAMES}"),
        (
            path.name == "card.json",
            f"is the card of exported weights, no recipe; zoo.load('{path.parent}') segments with them",
        ),
        (
            path.suffix in _WEIGHTS,
            f"holds weights, no recipe; zoo.create(RECIPE, pretrained='{path}') puts them into its network",
        ),
        (is_file(path), f"is no recipe, whose name ends in .yaml; {NAMES}"),
        (is_path(name), f"no such recipe file{_meant(path.stem, built_in)}; {NAMES}"),
    )
    found = next((text for is_it, text in cases if is_it), None)
    return component_hint(name) if found is None else f"{path}: {found}"


def _meant(name: str, models: list[str]) -> str:
    """The built-in models whose name is the given one, has it in it, or is the nearest."""
    if name in models:
        return f"; did you mean '{name}', the one built in?"
    having = [model for model in models if len(name) > 2 and name.lower() in model]
    return f"; did you mean {' or '.join(map(repr, having[:4]))}?" if having else nearest(name.lower(), models)
