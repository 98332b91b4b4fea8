"""`explain`: every head with and without a deformable neck, numbers against a forward pass by hand, and refusals."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskmed_zoo.build import model_of
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.errors import DataError, UserError
from maskmed_zoo.explain.explain import explain
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.report import canvas
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train

pixels = pytest.importorskip("matplotlib.image")
HEADS = ("pointwise", "learned_class", "attention_class", "attention_mask_class", "masked_query")
NAMES = ["background", "left", "right"]
CASE_PICTURES = {"class_embeddings.png", "mask_embeddings.png", "attention.png", "sampling.png"}


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones; only laid out, not rendered, except in tests that use `rendered`, as that takes longest."""
    monkeypatch.setattr(canvas, "DPI", 30)
    if "rendered" not in request.fixturenames:
        monkeypatch.setattr(canvas.Sheet, "save", _touch)


@pytest.fixture
def rendered() -> None:
    """Asked for by tests that need whole pictures."""


def _touch(_: canvas.Sheet, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run trained until it tells left from right, with two validation cases."""
    from tests.conftest import TINY, make_dataset

    folder = tmp_path_factory.mktemp("explain")
    (folder / "tiny.yaml").write_text(TINY)
    data = make_dataset(folder / "data")
    splits = [{"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]}]
    (data / "splits_final.json").write_text(json.dumps(splits))
    overrides = ["train.epochs=1", "train.iterations_per_epoch=90", "train.optimizer.lr=1e-2"]
    overrides += ["data.augmentation={kind: light, spatial_probability: 0, intensity_probability: 0}"]
    return train(load_recipe(folder / "tiny.yaml", overrides), data=data, out=folder / "run", device="cpu")


def image(run: RunFolder, case: int) -> Path:
    return run.path.parent / "data" / "imagesTr" / f"case_{case:02d}_0000.nii.gz"


def other_run(run: RunFolder, folder: Path, *overrides: str) -> RunFolder:
    """A run of another network on the same data, its weights random."""
    other = RunFolder(folder)
    recipe = load_recipe(run.recipe_file, list(overrides))
    other.write_recipe(recipe)
    shutil.copy(run.manifest_file, other.manifest_file)
    torch.manual_seed(0)
    other.save_weights(model_of(recipe), "last", recipe)
    return other


def document(out: Path) -> dict[str, Any]:
    return json.loads((out / "explain.json").read_text(encoding="utf-8"))


def window_of(run: RunFolder, case: int, start: list[int]) -> tuple[Predictor, torch.Tensor]:
    """The window (c d h w) at a place of a case, cut by hand."""
    predictor, volume = load(run, device="cpu"), read_image(image(run, case))
    prepared = predictor.prepare(volume.array[None], volume.geometry).image
    z, y, x = (slice(s, s + n) for s, n in zip(start, predictor.recipe.data.patch_size, strict=True))
    return predictor, prepared[:, z, y, x]


@pytest.mark.parametrize(("head", "neck"), list(product(HEADS, ("skip", "fsad"))))
def test_every_head_and_neck(run: RunFolder, tmp_path: Path, head: str, neck: str) -> None:
    other = run
    if (head, neck) != ("masked_query", "fsad"):
        width = ["model.head.width=12", "model.head.attention_heads=2"] if head not in HEADS[:2] else []
        loss = ["model.loss.kind=ce_dice"] if head != "masked_query" else []
        overrides = [f"model.head.kind={head}", *width, *loss] if head != "masked_query" else []
        other = other_run(run, tmp_path / "run", *overrides, *(["model.neck.kind=skip"] if neck == "skip" else []))
    written = explain(other, tmp_path / "out", device="cpu", validation=1)
    assert all(path.is_file() for path in written)
    found = document(tmp_path / "out")
    (case,) = found["cases"]
    assert (found["head"], found["neck"], case["case"]) == (head, neck, "case_02")
    pictures = {path.name for path in written if path.parent.name == "case_02"}
    expected = CASE_PICTURES - ({"sampling.png"} if neck == "skip" else set())
    expected -= {"class_embeddings.png", "attention.png"} if head == "pointwise" else set()
    expected -= {"attention.png"} if head == "learned_class" else set()
    if "attention.png" not in pictures and head in HEADS[2:4]:  # random queries may be bound to no label predicted
        assert not any(block["queries"] for block in case["attention"])
        assert "no attention.png" in found["notes"].pop()
        expected -= {"attention.png"}
    assert pictures == expected
    assert found["pictures"] == [str(p.relative_to(tmp_path / "out")) for p in written if p.suffix == ".png"]
    shapes = [(np.shape(s["class_embeddings"]), np.shape(s["mask_embeddings"])) for s in case["stages"]]
    classes = {"pointwise": (), "masked_query": (3, 4)}.get(head, (3, 3))
    assert shapes == [(classes, (3, 8)), (classes, (3, 4))]
    assert [s["size"] for s in case["stages"]] == [[4, 8, 8], [8, 16, 16]]
    assert len(found["notes"]) == (head == "pointwise") + (head in HEADS[:2]) + (neck == "skip")
    assert (found["binding"] is None) == (head == "pointwise")
    assert {"windows", "binding", "matching", "purity", "attention", "sampling"} <= set(found["definitions"])


def test_numbers_are_those_of_the_network(run: RunFolder, tmp_path: Path) -> None:
    """Class distributions, bindings and matching of a window cut and predicted by hand."""
    explain(run, tmp_path, device="cpu")
    found = document(tmp_path)
    assert [case["case"] for case in found["cases"]] == ["case_02", "case_03"]
    for number, case in zip((2, 3), found["cases"], strict=True):
        predictor, window = window_of(run, number, case["foreground_window"]["start"])
        with torch.inference_mode():
            output = predictor.model(window[None])
        for stage, record in zip(output.stages[::-1], case["stages"], strict=True):
            expected = stage.class_logits[0].softmax(-1).numpy()
            np.testing.assert_allclose(record["class_embeddings"], expected, rtol=1e-4, atol=1e-6)
        final = output.stages[0]
        chosen = [[*NAMES, None][k] for k in final.class_logits[0].argmax(-1).tolist()]
        filled = [bool((mask >= 0).any()) for mask in final.masks[0]]
        assert case["binding"] == [name if full else None for name, full in zip(chosen, filled, strict=True)]
        z, y, x = (slice(s, s + n) for s, n in zip(case["foreground_window"]["start"], window.shape[1:], strict=True))
        labels = read_labels(run.path.parent / "data" / "labelsTr" / f"case_{number:02d}.nii.gz").array[z, y, x]
        for name, served in case["matching"].items():
            target, masks = labels == NAMES.index(name), (final.masks[0] >= 0).numpy()
            dice = [2 * (mask & target).sum() / (mask.sum() + target.sum()) for mask in masks]
            assert served == {"query": int(np.argmax(dice)), "dice": pytest.approx(max(dice))}
        assert set(case["matching"]) == set(NAMES), "a trained head serves every label"


def test_purity_is_that_of_the_cases_listed(run: RunFolder, tmp_path: Path) -> None:
    explain(run, tmp_path, [image(run, 0).parent], device="cpu")
    found = document(tmp_path)
    assert len(found["cases"]) == 4
    assert found["matching"] is None, "images alone have no reference"
    shares: list[tuple[int, int]] = []
    for query in found["binding"]["queries"]:
        answers = [c["binding"][query["query"]] for c in found["cases"] if c["binding"][query["query"]]]
        assert query["bindings"] == len(answers)
        if answers:
            name, often = Counter(answers).most_common(1)[0]
            assert query["purity"] == often / len(answers)
            assert query["class"] == name or often <= len(answers) / 2
            shares.append((often, len(answers)))
    assert shares
    assert set(found["binding"]["classes"]) == {q["class"] for q in found["binding"]["queries"] if q["class"]}
    assert found["binding"]["mean_purity"] == pytest.approx(sum(a for a, _ in shares) / sum(b for _, b in shares))


def test_window_goes_where_it_is_asked_to(run: RunFolder, tmp_path: Path) -> None:
    """The image has 9 x 18 x 18 voxels, the window 8 x 16 x 16."""
    cases: list[tuple[dict[str, Any], list[int] | None, str]] = [
        ({"point": (0, 0, 17)}, [0, 0, 2], "voxel (0, 0, 17) of the image"),
        ({"point": (8, 17, 0)}, [1, 2, 0], "voxel (8, 17, 0) of the image"),
        ({"label": "left"}, None, "'left' as predicted"),
        ({"label": "right"}, None, "'right' as predicted"),
    ]
    for arguments, start, words in cases:
        explain(run, tmp_path, [image(run, 0)], device="cpu", **arguments)
        (case,) = document(tmp_path)["cases"]
        assert case["window"]["centred_on"] == words
        assert start in (None, case["window"]["start"])
        named = [voxel["class"] for voxel in case["sampling"][0]["voxels"]]
        assert sorted(named) == ["left", "right"]
        assert named[0] == arguments.get("label", named[0]), "the label asked for is drawn first"


def test_volumes_smaller_than_the_window_are_padded(run: RunFolder, tmp_path: Path) -> None:
    other = other_run(run, tmp_path / "run", "data.patch_size=[12,16,32]")
    shutil.copy(run.weights_file("last"), other.weights_file("last"))
    explain(other, tmp_path / "out", device="cpu", validation=1)
    (case,) = document(tmp_path / "out")["cases"]
    assert case["foreground_window"]["start"][0] == -1
    assert case["foreground_window"]["start"][2] == -7
    predictor, volume = load(other, device="cpu"), read_image(image(run, 2))
    prepared = predictor.prepare(volume.array[None], volume.geometry).image  # 9 x 18 x 18 in 12 x 16 x 32
    y = case["foreground_window"]["start"][1]
    padded = F.pad(prepared, (7, 7, 0, 0, 1, 2))[:, :, y : y + 16]
    with torch.inference_mode():
        masks = (predictor.model(padded[None]).stages[0].masks[0] >= 0)[:, 1:10, :, 7:25].numpy()
    labels = read_labels(run.path.parent / "data" / "labelsTr" / "case_02.nii.gz").array[:, y : y + 16]
    for name, served in case["matching"].items():
        target = labels == NAMES.index(name)
        dice = [2 * (mask & target).sum() / (mask.sum() + target.sum()) for mask in masks]
        assert served == {"query": int(np.argmax(dice)), "dice": pytest.approx(max(dice))}
    assert set(case["matching"]) == set(NAMES)


def test_own_voxel_has_no_distance(run: RunFolder, tmp_path: Path) -> None:
    other = other_run(run, tmp_path / "run", "model.neck.own_voxel=true", "model.neck.query_levels=2")
    explain(other, tmp_path / "out", device="cpu", validation=1)
    (layer,) = document(tmp_path / "out")["cases"][0]["sampling"]
    assert [level["distance_mm"] for level in layer["all_queries"]] == [0, 0, 0]
    assert sum(level["weight"] for level in layer["all_queries"]) == pytest.approx(1)


@pytest.mark.usefixtures("rendered")
def test_command(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "explain",
        str(run.path),
        str(image(run, 1)),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--point",
        "3,9,9",
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out.split()
    assert printed[-1] == str(tmp_path / "explain.json")
    for path in printed[:-1]:
        assert pixels.imread(path).std() > 0.05, "a picture with something on it"
    with pytest.raises(SystemExit) as stop:
        main([*words[:-1], "3,9"])
    assert stop.value.code == 2
    assert "three whole numbers z,y,x, got '3,9'" in capsys.readouterr().err
    assert main([*words[:-1], "3,9,20", "--weights", "best"]) == 2
    assert "case 'case_01': point 3,9,20 lies outside" in capsys.readouterr().err


def test_refusals(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = image(run, 0)
    with pytest.raises(UserError, match=r"no label 'lefft'; did you mean 'left'\?"):
        explain(run, tmp_path, [first], device="cpu", label="lefft")
    with pytest.raises(UserError, match=r"case 'case_00': point 0,0,18 lies outside of its 9 x 18 x 18 voxels"):
        explain(run, tmp_path, [first], device="cpu", point=(0, 0, 18))
    with pytest.raises(UserError, match="either images or validation cases"):
        explain(run, tmp_path, [first], device="cpu", validation=1)
    with pytest.raises(UserError, match="at least 1 validation case, got 0"):
        explain(run, tmp_path, device="cpu", validation=0)
    twin = tmp_path / "twin"
    twin.mkdir()
    nib.save(nib.load(first), twin / first.name)
    with pytest.raises(DataError, match="same name"):
        explain(run, tmp_path, [first.parent, twin], device="cpu")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"maskmed-zoo\[report\]"):
        explain(run, tmp_path, [first], device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"twin"}
