"""What an ablation is to do: every row checked and built without data, and the cells that follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskmed_zoo.ablation.cell import Cell, CellFolder
from maskmed_zoo.ablation.grid import Grid, GridFile, load_grid
from maskmed_zoo.arguments import parse_numbers
from maskmed_zoo.build import network_facts
from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.sources import check_disjoint, open_sources
from maskmed_zoo.device import pick_device
from maskmed_zoo.errors import ArgumentError, RecipeError, UserError
from maskmed_zoo.files import usable
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner.job import Task
from maskmed_zoo.runner.manifest import check_folder, run_facts


@dataclass(frozen=True)
class Ablation:
    """A grid on one or several data sets.

    `networks` holds `build.network_facts` of each row, `cells` row after row, in a row seed after seed, and of a seed
    fold after fold.
    """

    grid: Grid
    recipe: str
    overrides: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    task: Task
    out: Path
    networks: dict[str, dict[str, Any]]
    cells: tuple[Cell, ...]


def plan(
    grid: str | Path,
    *,
    data: Sequence[str | Path],
    out: Path,
    rows: Sequence[str] = (),
    baseline: str | None = None,
    seeds: int | str | Sequence[int] = 1,
    folds: str | Sequence[int] = (0,),
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
) -> Ablation:
    """Read a grid, check and build all of its rows; makes nothing on disk.

    `rows` are those to run beside the baseline, all by default; `baseline` stands in for the grid's. `seeds` is how
    many, from 0 on, or which, such as '3-7'; with several `folds` a row has a run of each for every seed. `recipe`
    stands in for the grid's base recipe, `overrides` come last in every row. Raises `RecipeError` holding the problems
    of all rows, `ArgumentError` for rows that are none and for seeds and folds that are no numbers, `DataError` for
    data sets or folds that cannot be used, `CheckpointError` where `out` holds a finished cell of data sets that have
    changed or have the same names.
    """
    seeds, numbers = _seeds(seeds), parse_numbers("folds", folds)
    pick_device(device)
    usable(out)
    file = load_grid(grid)
    sources = open_sources(data)
    splits = {fold: [source.splits(fold) for source in sources] for fold in numbers}
    check_disjoint(sources, splits)
    facts = {fold: run_facts(sources, parts, fold) for fold, parts in splits.items()}
    datasets = [source.dataset for source in sources]
    chosen = file.grid.only(rows, baseline)
    networks, recipes = build_rows(file, file.recipes(recipe, overrides), datasets)
    names = tuple(source.title for source in sources)
    folders = {fold: CellFolder(out, names, fold) for fold in numbers}
    cells = tuple(
        folders[fold].cell(name, load_recipe(recipes[name], {"train.seed": seed}))
        for name in chosen.rows
        for seed in seeds
        for fold in numbers
    )
    for cell in cells:
        if cell.scores() is not None:  # of an unfinished one, its own process says so
            check_folder(cell.run, bind(cell.recipe, *datasets), facts[cell.fold], resume=True)
    return Ablation(
        grid=chosen,
        recipe=recipe or file.grid.recipe,
        overrides=tuple(overrides),
        datasets=names,
        seeds=seeds,
        folds=numbers,
        task=Task(tuple(str(path) for path in data), device),
        out=out,
        networks=networks,
        cells=cells,
    )


def _seeds(given: int | str | Sequence[int]) -> tuple[int, ...]:
    """So many from 0 on, or those that text such as '3-7' names."""
    count = int(given) if isinstance(given, str) and re.fullmatch(r"\s*\d{1,4}\s*", given, re.ASCII) else given
    if isinstance(count, int) and count < 1:
        raise ArgumentError(f"seeds: expected 1 or more, or which, such as 3-7; got {count}")
    return tuple(range(count)) if isinstance(count, int) else parse_numbers("seeds", count)


def build_rows(
    file: GridFile, recipes: dict[str, Recipe], datasets: Sequence[RawDataset] = ()
) -> tuple[dict[str, dict[str, Any]], dict[str, Recipe]]:
    """Reports and recipes of all rows, decoders grown, on the data sets or on what the recipes state themselves.

    Raises `RecipeError` with each problem and its rows.
    """
    networks: dict[str, dict[str, Any]] = {}
    problems: dict[str, list[str]] = {}
    rows = file.grid.rows
    for name in sorted(recipes, key=lambda name: rows[name].parameters_of is not None):  # the others' size comes first
        model = rows[name].parameters_of
        try:
            if model in networks:
                recipes[name] = _grown(recipes[name], datasets, networks[model]["total_parameters"])
            networks[name] = _facts(recipes[name], datasets)
        except UserError as error:
            problems.setdefault(str(error), []).append(name)
    if problems:
        raise RecipeError(
            f"{file.place('rows', names[0])}: row {', '.join(repr(name) for name in names)}: {problem}"
            for problem, names in problems.items()
        )
    return networks, recipes


def _grown(recipe: Recipe, datasets: Sequence[RawDataset], total: int) -> Recipe:
    """The recipe with a decoder that brings the network to about `total` parameters."""
    for _ in range(2):  # the head grows a little with the stages it reads
        network = _facts(recipe, datasets)
        rest = network["total_parameters"] - network["parameters"]["decoder"]
        recipe = load_recipe(recipe, {"model.decoder.parameters": total - rest})
    return recipe


def _facts(recipe: Recipe, datasets: Sequence[RawDataset]) -> dict[str, Any]:
    return network_facts(bind(recipe, *datasets) if datasets else recipe)
