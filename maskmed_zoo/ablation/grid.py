"""A grid: one base recipe and named rows, each of which changes a little of it.

```yaml
schema_version: 1
name: necks
recipe: maskmed_amos
baseline: skip
rows:
  skip: {set: [model.neck.kind=skip]}
  fsad: {note: the base recipe as it is}
```
Later changes win: the base recipe, the grid's `set`, the row's `set`, the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from maskmed_zoo import registry
from maskmed_zoo.arguments import PATH, expect
from maskmed_zoo.errors import ArgumentError, RecipeError, nearest
from maskmed_zoo.files import is_file
from maskmed_zoo.recipe import strict_yaml
from maskmed_zoo.recipe.find import is_path, recipe_path
from maskmed_zoo.recipe.loader import Override, load_recipe, validated
from maskmed_zoo.recipe.schema import Probability, Recipe
from maskmed_zoo.recipe.strict_yaml import Document, KeyPath
from maskmed_zoo.settings import Name, Settings


class Row(Settings):
    """One row: what it changes, and what the paper says it reaches."""

    set: tuple[str, ...] = Field(default=(), description="changes to the base recipe, a.b=value each")
    parameters_of: str | None = Field(
        default=None, description="grow the decoder until the network has about as many parameters as that row's"
    )
    paper: Probability | None = Field(default=None, description="mean Dice that the paper states; null: none")
    note: str | None = None


class Grid(Settings):
    """A whole ablation."""

    schema_version: Literal[1] = Field(description="version of this format")
    name: Name = Field(description="of the tables that are written")
    recipe: str = Field(description="base recipe: a name, or a path from the grid's folder")
    set: tuple[str, ...] = Field(default=(), description="changes that all rows share")
    rows: dict[str, Row] = Field(min_length=1, description="row name to row, in the order of the table")
    baseline: str = Field(description="row that the others are compared with")

    @field_validator("baseline")
    @classmethod
    def _baseline_is_a_row(cls, baseline: str, info: ValidationInfo) -> str:
        rows = info.data.get("rows")
        if rows is not None and baseline not in rows:
            raise ValueError(f"'{baseline}' is no row{nearest(baseline, rows)}")
        return baseline

    @field_validator("rows")
    @classmethod
    def _rows_refer_to_rows(cls, rows: dict[str, Row]) -> dict[str, Row]:
        for name, row in rows.items():
            other = row.parameters_of
            if other is not None and (other not in rows or rows[other].parameters_of is not None):
                raise ValueError(
                    f"parameters_of of row '{name}': expected a row with a size of its own, got '{other}'"
                    f"{nearest(other, rows) if other not in rows else ''}"
                )
        return rows

    def only(self, names: Sequence[str], baseline: str | None = None) -> Grid:
        """The rows of these names, or all, beside their baseline, the grid's own or another row.

        Raises `ArgumentError` for a name that is no row.
        """
        baseline = baseline or self.baseline
        for name in (*names, baseline):
            if name not in self.rows:
                known = ", ".join(f"'{row}'" for row in self.rows)
                raise ArgumentError(f"row '{name}': grid '{self.name}' has none{nearest(name, self.rows)} ({known})")
        kept = {name: row for name, row in self.rows.items() if not names or name in (*names, baseline)}
        return self.model_copy(update={"rows": kept, "baseline": baseline})


@dataclass(frozen=True)
class GridFile:
    """A grid and the file it was read from."""

    grid: Grid
    document: Document

    def place(self, *path: str | int) -> str:
        """`file:line:col` of what stands at `path`."""
        return self.document.place(path)

    def recipes(self, base: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
        """Every row's recipe, from another base recipe if one is given.

        Raises `RecipeError` holding the problems of all rows.
        """
        source = recipe_path(base) if base is not None else self._base()
        shared = self._overrides(("set",), self.grid.set)
        recipes: dict[str, Recipe] = {}
        problems: list[str] = []
        for name, row in self.grid.rows.items():
            own = self._overrides(("rows", name, "set"), row.set)
            try:
                recipes[name] = load_recipe(source, [*shared, *own, *overrides])
            except RecipeError as error:
                problems += error.problems
        if problems:
            raise RecipeError(dict.fromkeys(problems))
        return recipes

    def _base(self) -> Path:
        name = self.grid.recipe
        beside = Path(self.document.source).parent / name
        try:
            return recipe_path(beside if is_file(beside) else name)
        except RecipeError as error:
            raise RecipeError(f"{self.place('recipe')}: recipe: {error}") from error

    def _overrides(self, path: KeyPath, texts: Sequence[str]) -> list[Override]:
        return [Override(text, self.place(*path, index)) for index, text in enumerate(texts)]


def load_grid(name_or_path: str | Path) -> GridFile:
    """Read and check a grid, by path or by the name of one built in.

    Raises `RecipeError` with every problem, each with file:line:col, the key, and the nearest name.
    """
    document = strict_yaml.read(_grid_path(name_or_path))
    if isinstance(document.data, dict) and "model" in document.data and "rows" not in document.data:
        raise RecipeError(
            f"{document.place(('model',))}: model: this is a recipe, no grid; it can be the grid's recipe"
        )
    if not isinstance(document.data, dict):
        raise RecipeError(f"{document.source}:1:1: a grid is a mapping with schema_version, name, recipe, rows, …")
    return GridFile(validated(document, Grid), document)


def _grid_path(name_or_path: str | Path) -> Path:
    expect("grid", name_or_path, PATH, "a built-in grid's name or the path of one")
    path, name, known = Path(name_or_path), str(name_or_path), built_in()
    if name in known:
        return known[name]
    if is_file(path):
        return path
    names = f"built in: {', '.join(known)}"
    if is_path(name):
        raise RecipeError(f"{path}: no such grid file{nearest(path.stem, known)}; give a .yaml ({names})")
    if name in registry.names():
        raise RecipeError(
            f"'{name}' is a {registry.card(name).kind}, no grid; give a grid ({names}), perhaps with --recipe {name}"
            if registry.card(name).kind == "model"
            else f"'{name}' is a {registry.card(name).kind}, no grid; rows of a grid name components ({names})"
        )
    raise RecipeError(f"no grid named '{name}'{nearest(name, known)} ({names}); or give a .yaml")


def built_in() -> dict[str, Path]:
    """The package's grids by name."""
    return {path.stem: path for path in sorted((registry.data_folder("recipes") / "ablations").glob("*.yaml"))}
