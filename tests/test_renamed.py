"""Words of earlier versions: read everywhere, reported in one line per file, never written."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import maskmed_zoo as zoo
from maskmed_zoo import registry, renamed
from maskmed_zoo.ablation.cell import CellFolder
from maskmed_zoo.ablation.grid import load_grid
from maskmed_zoo.errors import RecipeError, RegistryError
from maskmed_zoo.recipe import dump_recipe, load_recipe, recipe_type
from maskmed_zoo.recipe.network import network_difference
from maskmed_zoo.runner.run_folder import RunFolder
from tests.conftest import TINY

OLD = TINY.replace("  mirror_axes: [z, y]\n", "  unannotated: marginalise\n")
TIMM = {
    "data.patch_size": [8, 32, 32],
    "model.encoder.kind": "timm",
    "model.encoder.backbone": "resnet18",
}


@pytest.fixture(autouse=True)
def _afresh(caplog: pytest.LogCaptureFixture) -> None:
    """Each test is a process of its own to the reports, which are made once in a process."""
    renamed.log_once.cache_clear()
    caplog.set_level(logging.WARNING, "maskmed_zoo")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_an_old_recipe_is_read_and_reported_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "run" / "recipe.yaml", OLD)
    line = next(n for n, row in enumerate(OLD.splitlines(), 1) if row.startswith("  unannotated"))
    recipes = [load_recipe(path), RunFolder(tmp_path / "run").recipe(), zoo.load_recipe(path)]
    assert {recipe.data.unannotated for recipe in recipes} == {"marginalize"}
    assert caplog.messages == [
        f"{path}:{line}:3: data.unannotated: 'marginalise' is now 'marginalize'; both are read, the new one is written"
    ]
    written = dump_recipe(recipes[0])
    assert "unannotated: marginalize\n" in written
    caplog.clear()
    assert load_recipe(write(tmp_path / "new.yaml", written)) == recipes[0]
    assert not caplog.messages


def test_augmentation_without_a_kind_is_the_light_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was the only one; a recipe that says nothing about it has the default of today."""
    path = write(tmp_path / "old.yaml", TINY.replace("data:\n", "data:\n  augmentation: {rotation: 7}\n"))
    recipe = load_recipe(path)
    assert recipe.data.augmentation.model_dump()["rotation"] == 7
    assert recipe.data.augmentation.kind == "light"
    assert len(caplog.messages) == 1
    assert "settings without a kind are now those of 'light'" in caplog.messages[0]
    first = renamed.as_first_written(recipe.model_dump(mode="json"))
    assert "kind" not in first["data"]["augmentation"]
    assert load_recipe(write(tmp_path / "new.yaml", TINY)).data.augmentation.kind == "nnunet"


def test_two_old_words_in_one_file_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = dump_recipe(load_recipe(write(tmp_path / "tiny.yaml", TINY), TIMM))
    old = text.replace("marginalize", "marginalise").replace("inflation: center", "inflation: centre")
    assert load_recipe(write(tmp_path / "old.yaml", old)).model.encoder.model_dump()["inflation"] == "center"
    assert len(caplog.messages) == 1
    assert all(words in caplog.messages[0] for words in ("data.unannotated", "model.encoder.inflation", "'center'"))


def test_overrides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "tiny.yaml", TINY)
    grid = "schema_version: 1\nname: g\nrecipe: tiny.yaml\nbaseline: a\n"
    grid += "rows:\n  a: {set: [data.unannotated=marginalise]}\n"
    timm = [f"{key}={json.dumps(value)}" for key, value in TIMM.items()]
    recipes = [
        load_recipe(path, ["data.unannotated=marginalise"]),
        zoo.load_recipe(path, {"data.unannotated": "marginalise"}),
        load_grid(write(tmp_path / "grid.yaml", grid)).recipes()["a"],
        load_recipe(path, [*timm, "model.encoder.inflation=centre"]),
    ]
    assert {recipe.data.unannotated for recipe in recipes} == {"marginalize"}
    starts = ["--set data.unannotated=marginalise: ", "override data.unannotated: ", f"{tmp_path / 'grid.yaml'}:6:13: "]
    starts.append("--set model.encoder.inflation=centre: model.encoder.inflation: 'centre' is now 'center'")
    assert len(caplog.messages) == len(starts)
    assert all(message.startswith(start) for message, start in zip(caplog.messages, starts, strict=True))


def test_the_command_line_shows_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "old.yaml", OLD)
    words = [sys.executable, "-W", "ignore", "-m", "maskmed_zoo", "validate", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{path}: valid\n")
    assert done.stderr.startswith(f"{path}:") and done.stderr.count("\n") == 1  # noqa: PT018


def test_what_was_never_a_word_is_refused_still(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'marginalised' is not one of marginalize, background"):
        load_recipe(write(tmp_path / "a.yaml", OLD.replace("marginalise", "marginalised")))
    with pytest.raises(RecipeError, match=r"\.normalisation: unknown key; did you mean 'normalization'"):
        load_recipe(write(tmp_path / "a.yaml", OLD.replace("unannotated: marginalise", "normalisation: ct")))
    other = {"model": {"encoder": {"kind": "mine", "inflation": "centre"}}, "data": ["unannotated"]}
    renamed.update_recipe(other, str)
    assert other["model"] == {"encoder": {"kind": "mine", "inflation": "centre"}}  # a word of somebody else's component


def test_the_schema_has_the_new_words_only() -> None:
    schema = json.dumps(recipe_type().model_json_schema())
    assert len(renamed.RECIPE_VALUES) == 2
    for value in renamed.RECIPE_VALUES:
        assert f'"{value.new}"' in schema
        assert f'"{value.old}"' not in schema


def test_checksums_outlive_a_renaming(tmp_path: Path) -> None:
    """Weights and finished cells of before are those of the same recipe."""
    recipe = load_recipe(write(tmp_path / "tiny.yaml", TINY), TIMM)
    before = recipe.model_dump(mode="json")
    assert (before["data"]["unannotated"], before["model"]["encoder"]["inflation"]) == ("marginalize", "center")
    before["data"]["unannotated"], before["model"]["encoder"]["inflation"] = "marginalise", "centre"

    seen = {key: before["data"][key] for key in ("channels", "labels", "spacing", "normalization")}
    text = json.dumps({"model": before["model"], "data": seen}, sort_keys=True)
    file = write(tmp_path / "old.yaml", json.dumps(before))
    assert network_difference(hashlib.sha256(text.encode()).hexdigest(), recipe, file) is None
    assert network_difference(hashlib.sha256(b"other").hexdigest(), recipe, file) is not None

    del before["evaluation"]  # decides nothing that is trained, and was not there before
    later = {"freeze": [], "save_minutes": 10, "accumulate": 1, "ema": None, "patience": None}  # nor were these
    later |= {"checkpointing": [], "compile": False, "channels_last": False, "cudnn_benchmark": False}
    assert {name: before["train"].pop(name) for name in later} == later
    assert before["train"]["optimizer"].pop("fused") == "auto"
    assert before["inference"].pop("mirror") is False
    text = json.dumps([before, ["Boxes"], 0], sort_keys=True)
    folder = CellFolder(tmp_path, ["Boxes"], 0).cell("row", recipe).run.path
    assert folder.name == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_an_old_card_of_a_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = write(tmp_path / "registry" / "necks" / "mine.yaml", "summary: x\ntarget: a:b\nlicence: MIT\nneeds: y\n")
    monkeypatch.setattr(registry, "data_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(registry, "_REGISTRY", registry._Registry())
    assert list(zoo.describe("mine").items())[3:] == [("target", "a:b"), ("license", "MIT"), ("needs", "y")]
    assert caplog.messages == [f"{card}: 'licence' is now 'license'; both are read, the new one is written"]
    for wrong in ("licens: MIT\n", "licence: MIT\nlicense: MIT\n"):
        write(card, f"summary: x\ntarget: a:b\n{wrong}")
        with pytest.raises(RegistryError, match=r"mine\.yaml: a neck card needs 'summary' and 'target' and may hold"):
            registry._Registry().cards  # noqa: B018


def test_cards_of_the_package_have_the_new_words(caplog: pytest.LogCaptureFixture) -> None:
    assert len(registry._Registry().cards) >= 40
    assert not [message for message in caplog.messages if str(registry.data_folder("registry")) in message]
