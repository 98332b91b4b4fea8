"""Grids: what is read, in which order changes apply, and mistakes with their place; the built-in ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.ablation.grid import built_in, load_grid
from maskmed_zoo.build import model_of
from maskmed_zoo.errors import RecipeError

GRID = """\
schema_version: 1
name: heads
recipe: tiny.yaml
baseline: pointwise
set: [train.epochs=3, train.batch_size=1]
rows:
  pointwise:
    set: [model.head.kind=pointwise, model.loss.kind=ce_dice]
    paper: 0.878
  query:
    set:
      - train.epochs=4
    note: the recipe's own
"""
GRIDS = sorted(built_in())


@pytest.fixture
def grid(tiny_recipe: Path) -> Path:
    """A grid beside the tiny recipe."""
    path = tiny_recipe.with_name("grid.yaml")
    path.write_text(GRID, encoding="utf-8")
    return path


def test_later_changes_win(grid: Path) -> None:
    file = load_grid(grid)
    assert [(row.paper, row.note) for row in file.grid.rows.values()] == [(0.878, None), (None, "the recipe's own")]
    recipes = file.recipes()
    assert [recipe.train.epochs for recipe in recipes.values()] == [3, 4]
    assert [recipe.model.head.model_dump()["kind"] for recipe in recipes.values()] == ["pointwise", "masked_query"]
    recipes = file.recipes(overrides=["train.epochs=5"])
    assert [(recipe.train.epochs, recipe.train.batch_size) for recipe in recipes.values()] == [(5, 1), (5, 1)]


def test_another_base(grid: Path) -> None:
    recipes = load_grid(grid).recipes("maskmed_phantom")
    assert {recipe.name for recipe in recipes.values()} == {"maskmed_phantom"}
    assert [recipe.train.epochs for recipe in recipes.values()] == [3, 4]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: pointwise", "baseline: pointwize", "4:1: baseline: 'pointwize' is no row; did you mean"),
        ("paper: 0.878", "papper: 0.878", "9:5: rows.pointwise.papper: unknown key; did you mean 'paper'?"),
        ("paper: 0.878", "paper: 87.8", "9:5: rows.pointwise.paper: input should be less than or equal to 1, got 87.8"),
        ("paper: 0.878", "parameters_of: x", "6:1: rows: parameters_of of row 'pointwise': expected a row"),
        ("recipe: tiny.yaml", "recipe: tiny.yml", "3:1: recipe: tiny.yml: no such recipe file"),
        ("recipe: tiny.yaml", "recipe: maskmed_amoz", "3:1: recipe: no recipe named 'maskmed_amoz'; did you mean"),
        ("train.epochs=3", "train.epoch=3", "5:7: train.epoch: unknown key; did you mean 'epochs'?"),
        ("- train.epochs=4", "- train.epochs=x", "12:9: train.epochs: input should be a valid integer"),
        ("- train.epochs=4", "- train.epochs", "12:9: expected key.key=value"),
        ("- train.epochs=4", "- 'train.epochs=[4'", "12:9:1:3: not valid YAML"),
        ("- train.epochs=4", "- model.neck.kind=skipp", "12:9: model.neck.kind: 'skipp' is not one of"),
        ("  query:", "  pointwise:", "10:3: duplicate key 'pointwise', first given at 7:3"),
        ("schema_version: 1", "schema_version: 2", "1:1: schema_version: '2' is not one of 1"),
        (GRID, "[]", "1:1: a grid is a mapping"),
    ],
)  # fmt: skip
def test_mistakes_have_a_place(grid: Path, old: str, new: str, message: str) -> None:
    assert old in GRID
    grid.write_text(GRID.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_grid(grid).recipes()
    (line,) = caught.value.problems
    assert "\n" not in line
    assert line.startswith(f"{grid}:")
    assert message in line


def test_problems_of_all_rows_come_together(grid: Path) -> None:
    text = GRID.replace("kind=pointwise", "kind=pointwize").replace("epochs=4", "epochs=x")
    grid.write_text(text.replace("batch_size=1", "batch_size=0"), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_grid(grid).recipes()
    places = [line.removeprefix(f"{grid}:").split(": ")[0] for line in caught.value.problems]
    assert sorted(places) == ["12:9", "5:23", "8:11"], "and what all rows share is said once"


def test_unknown_grids() -> None:
    with pytest.raises(RecipeError, match="no grid named 'tabel3'; did you mean 'table3'"):
        load_grid("tabel3")
    with pytest.raises(RecipeError, match="no such grid file"):
        load_grid("nowhere/table3.yaml")


def test_built_in_grids_were_found() -> None:
    assert GRIDS == [
        "combined_headneck", "controls", "headneck_cpu", "ideas_headneck",
        "table3", "table4", "table5", "table6", "table7",
    ]  # fmt: skip
    assert {name: len(load_grid(name).grid.rows) for name in GRIDS} == {
        "combined_headneck": 16, "controls": 6, "headneck_cpu": 11, "ideas_headneck": 5,
        "table3": 6, "table4": 6, "table5": 4, "table6": 4, "table7": 4,
    }  # fmt: skip


@pytest.mark.parametrize("base", ["maskmed_amos", "maskmed_headneck_cpu"])
@pytest.mark.parametrize("name", GRIDS)
def test_built_in_grids_fit_any_size(name: str, base: str) -> None:
    recipes = load_grid(name).recipes(base)
    ready = [row for row in load_grid(name).grid.rows if load_grid(name).grid.rows[row].parameters_of is None]
    assert len({recipes[row].model_dump_json() for row in ready}) == len(ready) >= 4, "each row is another one"
    width = zoo.load_recipe(base).model.head.model_dump()["width"]
    for recipe in recipes.values():
        assert {part.model_dump().get("width", width) for part in (recipe.model.head, recipe.model.neck)} == {width}


@pytest.mark.parametrize("name", GRIDS)
def test_every_row_builds(name: str) -> None:
    for recipe in load_grid(name).recipes("maskmed_phantom").values():
        with torch.device("meta"):
            assert model_of(recipe).num_classes == recipe.data.num_classes


def test_rows_share_what_the_tables_share() -> None:
    """A row that two tables have is the same recipe, so that its runs are shared."""
    rows = {name: load_grid(name).recipes() for name in GRIDS}
    base = zoo.load_recipe("maskmed_amos")
    shared = [("table4", "fsad"), ("table5", "0.1"), ("table6", "K"), ("table7", "2:10:10"), ("controls", "maskmed")]
    assert all(rows[table][row] == base for table, row in shared)
    assert rows["table3"]["masked_query"] == rows["table4"]["decoupled head"]
    assert rows["controls"]["skip"] == rows["table4"]["masked attention"]
