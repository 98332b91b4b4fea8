"""Cells of an ablation are found by what they were trained with, also where their name is of an earlier version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import create_model

from maskmed_zoo.ablation.cell import CellFolder
from maskmed_zoo.files import write_json
from maskmed_zoo.necks import fsad
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.run_folder import RunFolder

MANIFEST: dict[str, Any] = {"data": [], "dataset": "Boxes", "fold": 0, "seed": 0, "validation": [], "fingerprint": []}


def held(out: Path, name: str, recipe_file: Path, **facts: Any) -> RunFolder:
    """A run of the recipe, as far as cells look at it."""
    run = RunFolder(out / "cells" / name)
    run.write_recipe(load_recipe(recipe_file))
    write_json(run.manifest_file, MANIFEST | facts)
    return run


def test_a_setting_added_since_makes_no_new_cell(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CellFolder(tmp_path, ["Boxes"], 0).cell("row", load_recipe(tiny_recipe))
    run = held(tmp_path, before.run.path.name, tiny_recipe)
    config = create_model("FSADConfig", __base__=fsad.FSADConfig, kind=(Literal["fsad"], "fsad"), extra=(bool, False))
    monkeypatch.setattr(fsad.FSADNeck, "Config", config)
    folder = CellFolder(tmp_path, ["Boxes"], 0)
    assert folder.cell("row", load_recipe(tiny_recipe)).run == run
    other = folder.cell("row", load_recipe(tiny_recipe, {"model.neck.extra": True})).run
    assert other != run
    assert not other.path.exists()


def test_another_data_set_fold_or_recipe_is_another_cell(tiny_recipe: Path, tmp_path: Path) -> None:
    run = held(tmp_path, "of_an_earlier_name", tiny_recipe)
    held(tmp_path, "other_data", tiny_recipe, dataset="Other")
    (tmp_path / "cells" / "broken").mkdir()
    (tmp_path / "cells" / "broken" / "recipe.yaml").write_text("name: [")
    recipe = load_recipe(tiny_recipe)
    assert CellFolder(tmp_path, ["Boxes"], 0).cell("row", recipe).run == run
    open_ended = load_recipe(tiny_recipe, {"data.labels": None, "data.channels": None})
    assert CellFolder(tmp_path, ["Boxes"], 0).cell("row", open_ended).run == run
    for names, fold, wanted in (
        (["Boxes", "More"], 0, recipe),
        (["Boxes"], 1, recipe),
        (["Boxes"], 0, load_recipe(recipe, {"train.seed": 1})),
    ):
        assert not CellFolder(tmp_path, names, fold).cell("row", wanted).run.path.exists()
