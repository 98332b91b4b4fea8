"""Recipes: strict reading, overrides, and errors that say file:line:col and the nearest name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import maskmed_zoo as zoo
from maskmed_zoo import registry
from maskmed_zoo.errors import RecipeError
from maskmed_zoo.recipe import dump_recipe, load_recipe, recipe_type
from maskmed_zoo.recipe.strict_yaml import Document, dump

GOOD = """\
schema_version: 1
name: small
model:
  encoder: {kind: plain_conv, channels: [4, 8]}
  neck: {kind: skip}
  decoder: {kind: unet}
  head: {kind: masked_query, width: 16, attention_heads: 2}
  loss: {kind: set_criterion}
data:
  channels: [CT]
  labels: {background: 0, liver: 1}
  spacing: [2, 1, 1]
  patch_size: [8, 8, 8]
train:
  optimizer: {lr: 3e-4}
inference: {}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-2", -2),
        ("+7", 7),
        ("012", 12),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("null", None),
        ("~", None),
        ("true", True),
        ("'3e-4'", "3e-4"),
        ("[1, 2e1]", [1, 20.0]),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    read = Document(text, "t").data
    assert read == value
    assert type(read) is type(value)


def test_dump_reads_back_as_the_same_data() -> None:
    data = {"a": "no", "b": "3e-4", "c": 3e-5, "d": [1, "2", None, True], "e": {"f": "1:30", "g": 1e22}, "h": "null"}
    assert Document(dump(data), "t").data == data


def test_good_recipe_loads_and_round_trips(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.train.optimizer.lr == 3e-4
    assert recipe.data.num_classes == 2
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert "num_queries: null" in dump_recipe(recipe), "the resolved recipe writes every default out"


def test_recipes_are_frozen(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3  # type: ignore[misc]


def test_all_problems_at_once_each_with_place_and_remedy(tmp_path: Path) -> None:
    text = GOOD.replace("kind: plain_conv", "kind: plain_konv").replace("width: 16", "widht: 16")
    text = text.replace("spacing: [2, 1, 1]", "spacing: [2, 1]").replace("lr: 3e-4", "lr: fast")
    text = text.replace("inference: {}", "inferense: {}")
    path = tmp_path / "recipe.yaml"
    found = problems(tmp_path, text)
    expected = [
        (4, "model.encoder.kind: 'plain_konv' is not one of ", "plain_conv, residual", "did you mean 'plain_conv'?"),
        (7, "model.head.widht: unknown key", "did you mean 'width'?"),
        (12, "data.spacing", "3"),
        (15, "train.optimizer.lr: input should be a valid number", "got 'fast'"),
        (16, "inferense: unknown key", "did you mean 'inference'?"),
        (1, "inference: is missing", ""),
    ]
    for line, *parts in expected:
        rows = [row for row in found if row.startswith(f"{path}:{line}:") and all(part in row for part in parts)]
        assert len(rows) == 1, (line, parts, found)
        assert re.match(rf"{re.escape(str(path))}:{line}:\d+: ", rows[0])
    assert len(found) == len(expected)


def test_column_points_at_the_key(tmp_path: Path) -> None:
    (row,) = problems(tmp_path, GOOD.replace("width: 16", "widht: 16"))
    line = GOOD.splitlines()[6].replace("width", "widht")
    assert row.startswith(f"{tmp_path / 'recipe.yaml'}:7:{line.index('widht') + 1}: ")


def test_duplicate_keys_are_errors(tmp_path: Path) -> None:
    (row,) = problems(tmp_path, GOOD + "name: other\n")
    assert "duplicate key 'name'" in row
    assert "2:1" in row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: small", "name: [small"), "not valid YAML"),
        (("name: small", "name: !!python/object:os.system small"), "is not allowed here"),
        (("{background: 0, liver: 1}", "{background: 0, 1: liver}"), "must be text"),
        (("{background: 0, liver: 1}", "{background: 0, liver: 2}"), "without gaps"),
        (("{background: 0, liver: 1}", "{liver: 0, spleen: 1}"), "background: 0"),
        (("{background: 0, liver: 1}", "{background: 0, ignore: 1, liver: 2}"), "highest value"),
        (("width: 16", "width: 15"), "must divide 'width'"),
        (
            ("liver: 1}", "lung_left: 1, lung_right: 2}\n  mirror_axes: [x]"),
            "'lung_left' and 'lung_right' are a left/right pair",
        ),
        (("channels: [4, 8]", "channels: [4, 8], strides: [1]"), "1 entries for 2 levels"),
        (("patch_size: [8, 8, 8]", "patch_size: [8, 8, 0]"), "greater than or equal to 1"),
        (("kind: skip", "kin: skip"), "needs a 'kind'"),
        (("channels: [4, 8]", "channels: [4, 8], blocks: x"), "blocks: input should be a valid integer"),
        (("inference: {}", "inference: {overlap: true}"), "'overlap' takes neither true nor false, got true"),
        (("liver: 1}", "liver: true}"), "label values are numbers"),
        (("inference: {}", "inference: &a [*a]"), "an alias stands inside its own anchor"),
        (("{lr: 3e-4}", "{lr: 1e999}"), "finite number"),
        (
            ("  patch_size: [8, 8, 8]", "  patch_size: [8, 8, 8]\n  augmentation: {kind: light, scale: [1.4, 0.7]}"),
            "comes first",
        ),
        (("  channels: [CT]", "  channels: [CT]\n  normalization: []"), "lists 0 schemes for 1 channels; give one for"),
        (("  channels: [CT]", "  normalization: []"), "lists 0 schemes for all channels"),
        (("  channels: [CT]", "  channels: [CT]\n  normalization: [ct, zscore]"), "lists 2 schemes for 1 channels"),
        (("schema_version: 1", "schema_version: 2"), "'2' is not one of 1"),
    ],
)
def test_bad_recipes(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    found = problems(tmp_path, text)
    assert sum(message in row for row in found) == 1, found
    assert all("\n" not in row for row in found)


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(
        path, ["train.epochs=7", "data.spacing=[1,1,3e0]", "data.augmentation={kind: light, rotation: 5}"]
    )
    assert recipe.train.epochs == 7
    assert recipe.data.spacing == (1, 1, 3)
    assert recipe.data.augmentation.rotation == 5
    assert load_recipe(path, {"train.epochs": 7}).train.epochs == 7
    assert load_recipe(recipe, {"train.epochs": 8}).train.epochs == 8
    swapped = load_recipe(path, ["model.head.kind=pointwise", "model.loss.kind=ce_dice"])
    assert swapped.model.head.model_dump() == {"kind": "pointwise"}, "settings of the old head are dropped"
    same = load_recipe(path, ["model.head.kind=masked_query"])
    assert same.model.head.model_dump()["width"] == 16


def test_another_kind_keeps_what_both_inherit(tmp_path: Path) -> None:
    text = GOOD.replace("{kind: skip}", "{kind: fsad, width: 16, attention_heads: 2, query_levels: 1, points: 3}")
    text = text.replace("{kind: set_criterion}", "{kind: set_criterion, dice_weight: 7}")
    text = text.replace("channels: [4, 8]}", "channels: [4, 8], blocks: 1}")
    path = write(tmp_path, text)
    swaps = ["encoder.kind=residual", "neck.kind=transformer", "head.kind=attention_mask_class", "loss.kind=ce_dice"]
    parts = load_recipe(path, [f"model.{swap}" for swap in swaps]).model.model_dump()
    assert (parts["encoder"]["channels"], parts["encoder"]["blocks"]) == ((4, 8), 1)
    assert [parts["neck"][name] for name in ("width", "attention_heads", "query_levels")] == [16, 2, 1]
    assert [parts["head"][name] for name in ("width", "attention_heads")] == [16, 2]
    assert parts["loss"]["dice_weight"] == 1, "the same name in two losses that share no base means two things"
    deformable = load_recipe(path, ["model.neck.kind=deformable"]).model.neck.model_dump()
    assert (deformable["query_levels"], deformable["points"]) == (1, 4), "points is each neck's own"
    later = load_recipe(path, ["model.neck.kind=transformer", "model.neck.width=8"]).model.neck.model_dump()
    assert later["width"] == 8
    there_and_back = ["model.neck.kind=skip", "model.neck.kind=fsad", "model.neck.attention_heads=2"]
    assert load_recipe(path, there_and_back).model.neck.model_dump()["width"] == 192
    for nonsense in ("nowhere", "[1]", "{a: 1}", "null"):
        with pytest.raises(RecipeError):
            load_recipe(path, [f"model.neck.kind={nonsense}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "--set train.epoch=3: train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.epochs=many", "--set train.epochs=many: train.epochs: input should be a valid integer"),
        ("train.epochs", "expected key.key=value"),
        ("name.x=3", "'name' is a value"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    (row,) = problems(tmp_path, GOOD, override)
    assert message in row


def test_unknown_recipe_names() -> None:
    with pytest.raises(RecipeError, match="did you mean 'maskmed_amos'"):
        zoo.load_recipe("maskmed_amoss")
    with pytest.raises(RecipeError, match="no such recipe file"):
        zoo.load_recipe("nowhere/recipe.yaml")


def test_schema_covers_every_component_and_setting() -> None:
    schema = json.dumps(recipe_type().model_json_schema())
    for kind in registry.COMPONENT_KINDS:
        for name in registry.names(kind):
            assert f'"const": "{name}"' in schema
            for setting in registry.component(name).Config.model_fields:
                assert f'"{setting}"' in schema


def test_every_recipe_of_the_package_reads_alike_in_plain_yaml() -> None:
    """No recipe leans on what sets the strict reader apart, but for numbers such as 1e-3."""
    paths = sorted(registry.data_folder("recipes").glob("*/*.yaml"))
    assert len(paths) >= 13
    for path in paths:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert plain.keys() == Document(path.read_text(encoding="utf-8"), "x").data.keys()
        assert path.read_text(encoding="utf-8").startswith("# "), f"{path} needs a header comment"
