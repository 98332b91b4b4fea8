"""The public functions with arguments of every wrong kind, and with names that stand for something else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.ablation.grid import load_grid
from maskmed_zoo.device import pick_device
from maskmed_zoo.errors import ArgumentError, RecipeError, UserError
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import Recipe
from tests.conftest import TINY

WRONG: tuple[Any, ...] = (
    None, 3, -1, 2.5, True, float("nan"), 10**30, b"x", "", "\0", "x" * 5000, "\udcff", object(), int, [], {}, (),
    {1: 2}, [None], ["a"], np.zeros(3), torch.zeros(2), Path("no where"),
)  # fmt: skip
FUNCTIONS: dict[str, Callable[[Any, Recipe], object]] = {
    "create": lambda x, _: zoo.create(x),
    "create in_channels": lambda x, r: zoo.create(r, in_channels=x),
    "create num_classes": lambda x, r: zoo.create(r, num_classes=x),
    "create pretrained": lambda x, r: zoo.create(r, pretrained=x),
    "create strict": lambda x, r: zoo.create(r, strict=x),
    "create width": lambda x, r: zoo.create(r, model__head__width=x),
    "create kind": lambda x, r: zoo.create(r, model__neck__kind=x),
    "create model": lambda x, r: zoo.create(r, model=x),
    "create labels": lambda x, r: zoo.create(r, data__labels=x),
    "create num_class": lambda x, r: zoo.create(r, num_class=x),
    "load_weights": lambda x, _: zoo.load_weights(x, "no file"),
    "load_weights source": lambda x, _: zoo.load_weights(torch.nn.Conv3d(1, 1, 1), x),
    "load_weights strict": lambda x, _: zoo.load_weights(torch.nn.Conv3d(1, 1, 1), "no file", strict=x),
    "load_weights minimum": lambda x, _: zoo.load_weights(torch.nn.Conv3d(1, 1, 1), "no file", minimum=x),
    "attach_head": lambda x, _: zoo.attach_head(x, num_classes=2),
    "attach_head head": lambda x, _: zoo.attach_head(torch.nn.Conv3d(1, 2, 1), x, num_classes=2),
    "attach_head num_classes": lambda x, _: zoo.attach_head(torch.nn.Conv3d(1, 2, 1), num_classes=x),
    "attach_head patch_size": lambda x, _: zoo.attach_head(torch.nn.Conv3d(1, 2, 1), num_classes=2, patch_size=x),
    "attach_head spacing": lambda x, _: zoo.attach_head(torch.nn.Conv3d(1, 2, 1), num_classes=2, spacing=x),
    "attach_head stages": lambda x, _: zoo.attach_head(torch.nn.Conv3d(1, 2, 1), num_classes=2, stages=x),
    "train": lambda x, _: zoo.train(x, data="no data", out="run"),
    "train data": lambda x, r: zoo.train(r, data=x, out="run"),
    "train out": lambda x, r: zoo.train(r, data="no data", out=x),
    "train fold": lambda x, r: zoo.train(r, data="no data", out="run", fold=x),
    "train folds": lambda x, r: zoo.train(r, data="no data", out="run", folds=x),
    "train device": lambda x, r: zoo.train(r, data="no data", out="run", device=x),
    "train workers": lambda x, r: zoo.train(r, data="no data", out="run", workers=x),
    "train init": lambda x, r: zoo.train(r, data="no data", out="run", init=x),
    "train extend_to": lambda x, r: zoo.train(r, data="no data", out="run", resume=True, extend_to=x),
    "train resume alone": lambda x, _: zoo.train(resume=x),
    "train resume": lambda x, r: zoo.train(r, data="no data", out="run", resume=x),
    "train epochs": lambda x, r: zoo.train(r, data="no data", out="run", train__epochs=x),
    "compare": lambda x, _: zoo.compare(x),
    "compare paths": lambda x, _: zoo.compare({"a": x, "b": x}),
    "compare ref": lambda x, _: zoo.compare({"a": "no folder", "b": "no folder"}, ref=x),
    "compare metrics": lambda x, _: zoo.compare({"a": "no folder", "b": "no folder"}, metrics=x),
    "load": lambda x, _: zoo.load(x),
    "load weights": lambda x, _: zoo.load("no run", weights=x),
    "load postprocess": lambda x, _: zoo.load("no run", postprocess=x),
    "postprocess": lambda x, _: zoo.postprocess(x),
    "postprocess data": lambda x, _: zoo.postprocess("no run", data=x),
    "postprocess weights": lambda x, _: zoo.postprocess("no run", weights=x),
    "postprocess thresholds": lambda x, _: zoo.postprocess("no run", thresholds=x),
    "postprocess dry_run": lambda x, _: zoo.postprocess("no run", dry_run=x),
    "evaluate": lambda x, _: zoo.evaluate(x),
    "evaluate pred": lambda x, _: zoo.evaluate(pred=x, ref="nothing"),
    "evaluate ref": lambda x, _: zoo.evaluate(pred="nothing", ref=x),
    "evaluate labels": lambda x, _: zoo.evaluate(pred="nothing", ref="nothing", labels=x),
    "evaluate metrics": lambda x, _: zoo.evaluate("no run", metrics=x),
    "evaluate metric_settings": lambda x, _: zoo.evaluate("no run", metric_settings=x),
    "evaluate data": lambda x, _: zoo.evaluate("no run", data=x),
    "evaluate weights": lambda x, _: zoo.evaluate("no run", weights=x),
    "list": lambda x, _: zoo.list(x),
    "list kind": lambda x, _: zoo.list(kind=x),
    "describe": lambda x, _: zoo.describe(x),
    "load_recipe": lambda x, _: zoo.load_recipe(x),
    "load_recipe overrides": lambda x, r: zoo.load_recipe(r, x),
    "load_recipe epochs": lambda x, r: zoo.load_recipe(r, {"train.epochs": x}),
    "register": lambda x, _: zoo.register(x, kind="neck")(int),
    "register kind": lambda x, _: zoo.register("x", kind=x)(int),
    "register class": lambda x, _: zoo.register("x", kind="neck")(x),
    "Predictor": lambda x, _: Predictor(x, x),
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The tiny recipe, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return zoo.load_recipe("tiny.yaml")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_kinds_are_a_users_mistake(name: str, recipe: Recipe) -> None:
    """Never an error from deep inside, and each message is of lines that can be shown."""
    messages: list[str] = []
    for value in WRONG:
        try:
            FUNCTIONS[name](value, recipe)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) >= len(WRONG) // 3
    for message in messages:
        assert all(line and line.isprintable() for line in message.split("\n"))


NAMES = {
    "fsad": "'fsad' is a neck, no model; a recipe names it as model.neck.kind; 'maskmed-zoo list --kind model'",
    "masked_query": "'masked_query' is a head, no model; a recipe names it as model.head.kind",
    "AMOS": "no recipe named 'AMOS'; did you mean .*'maskmed_amos'",
    "Maskmed_Amos": "did you mean 'maskmed_amos'",
    "maskmed_amos.yaml": "no such recipe file; did you mean 'maskmed_amos', the one built in",
    "elsewhere/maskmed_amso.yaml": "no such recipe file; did you mean 'maskmed_amos'",
    "Dataset001_X": "is a data set, no recipe; recipes are trained on it: --data Dataset001_X, in Python data='",
    "folder": "is a folder, no recipe",
    "run": r"is a run or an exported folder, no recipe; zoo\.load\('run'\) segments with it",
    "w.safetensors": r"holds weights, no recipe; zoo\.create\(RECIPE, pretrained='w\.safetensors'\)",
    "run/card.json": r"is the card of exported weights, no recipe; zoo\.load\('run'\)",
    "notes.txt": r"is no recipe, whose name ends in \.yaml",
    "grid.yaml": r"grid\.yaml:1:1: rows: this is a grid of 'ablate', no recipe",
    "x" * 5000: "no recipe named",
    "\0": "no recipe named",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
@pytest.mark.usefixtures("recipe")
def test_names_that_are_no_model_say_what_they_are(name: str) -> None:
    for folder in ("Dataset001_X", "folder", "run"):
        Path(folder).mkdir()
    for file in ("Dataset001_X/dataset.json", "run/recipe.yaml", "run/card.json", "w.safetensors", "notes.txt"):
        Path(file).touch()
    Path("grid.yaml").write_text("rows: {}")
    readers: tuple[Callable[[Any], object], ...] = (
        zoo.create,
        zoo.load_recipe,
        lambda x: zoo.train(x, data="d", out="o"),
    )
    for read in readers:
        for given in (name, Path(name)):
            with pytest.raises(RecipeError, match=NAMES[name]) as caught:
                read(given)
            assert "\n" not in str(caught.value)


def test_where_something_else_than_a_model_is_wanted(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="'maskmed_amos' is a model, no run; give a folder that 'train' made"):
        zoo.load("maskmed_amos")
    with pytest.raises(RecipeError, match=r"'maskmed_amos' is a model, no grid; give a grid .*--recipe maskmed_amos"):
        load_grid("maskmed_amos")
    with pytest.raises(RecipeError, match="'fsad' is a neck, no grid"):
        load_grid("fsad")
    with pytest.raises(RecipeError, match=r"tiny\.yaml:\d+:1: model: this is a recipe, no grid"):
        load_grid("tiny.yaml")
    with pytest.raises(ArgumentError, match=r"recipe: expected a loaded recipe; zoo\.load\(FOLDER\) makes a predictor"):
        Predictor("runs/mine", zoo.create(recipe))  # type: ignore[arg-type]


def test_words_that_are_nearly_arguments(recipe: Recipe) -> None:
    with pytest.raises(ArgumentError, match="create: no argument 'num_class'; did you mean 'num_classes'"):
        zoo.create(recipe, num_class=3)
    with pytest.raises(ArgumentError, match="train: no argument 'epochs'; did you mean 'train__epochs'"):
        zoo.train(recipe, data="d", out="o", epochs=3)
    with pytest.raises(ArgumentError, match="fold: expected a whole number, or 'all' to train on every case, got"):
        zoo.train(recipe, data="d", out="o", fold="every")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="overrides: expected a mapping"):
        zoo.load_recipe(recipe, "train.epochs=3")  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"device 'gpu' cannot be used .*use cpu, cuda, cuda:1, … or mps; GPUs of NVIDIA"
    ):
        pick_device("gpu")


def test_load_recipe_takes_keywords(recipe: Recipe) -> None:
    changed = zoo.load_recipe("tiny.yaml", {"train.epochs": 5}, train__seed=7, name="mine")
    assert (changed.train.epochs, changed.train.seed, changed.name) == (5, 7, "mine")
    assert changed == zoo.load_recipe(recipe, {"train.epochs": 5, "train.seed": 7, "name": "mine"})


def test_numbers_of_numpy_are_numbers(recipe: Recipe) -> None:
    assert zoo.create(recipe, num_classes=np.int64(4)).num_classes == 4  # type: ignore[arg-type]


def test_messages_of_the_bound_are_json_free(recipe: Recipe) -> None:
    with pytest.raises(RecipeError) as caught:
        zoo.load_recipe(recipe, {"train.epochs": np.zeros((50, 50))})
    assert not re.search(r"\n", str(caught.value))
    assert len(json.dumps(str(caught.value))) < 600
