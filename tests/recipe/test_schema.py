"""The JSON Schema agrees with the package: it takes every recipe, and refuses what an editor should underline."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from maskmed_zoo import registry
from maskmed_zoo.recipe import recipe_type
from maskmed_zoo.recipe.strict_yaml import read

RECIPES = sorted(p for p in registry.data_folder("recipes").glob("*/*.yaml") if p.parent.name != "ablations")
SCHEMA = recipe_type().model_json_schema()


def test_recipes_were_found() -> None:
    assert len(RECIPES) >= 13


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    jsonschema.validate(read(path).data, SCHEMA)


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", "many"), ("epochz", 3), ("optimizer", {"kind": "adam"}), ("batch_size", 0)]
)
def test_mistakes_are_refused(key: str, value: object) -> None:
    data = read(RECIPES[0]).data
    data["train"][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)
