"""Every bad input: one clear line on standard error that says what, where and what to do; exit code 2; nothing left."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maskmed_zoo.cli.main import main
from tests.conftest import make_dataset, write_nifti

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
IMAGE, LABEL = "imagesTr/case_01_0000.nii.gz", "labelsTr/case_01.nii.gz"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def change_image(data: Path, change: Callable[[np.ndarray], np.ndarray], name: str = IMAGE) -> None:
    image = nib.load(data / name)
    write_nifti(data / name, change(np.asarray(image.dataobj)), image.affine)


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[3, 4, 5] = np.nan
    return array


def with_label_seven(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[0, 0, 0] = 7
    return array


RECIPES = {
    "unknown key": (
        lambda r: edit(r, "epochs: 2", "epoch: 2"),
        r"tiny\.yaml:\d+:\d+: train\.epoch: unknown key; did you mean 'epochs'",
    ),
    "wrong type": (
        lambda r: edit(r, "epochs: 2", "epochs: two"),
        r"tiny\.yaml:\d+:\d+: train\.epochs: .*integer.*got 'two'",
    ),
    "duplicate key": (
        lambda r: edit(r, "name: tiny", "name: tiny\nname: big"),
        r"tiny\.yaml:\d+:1: duplicate key 'name'",
    ),
    "unknown component": (
        lambda r: edit(r, "kind: fsad", "kind: fsda"),
        r"model\.neck\.kind: 'fsda' is not one of .*did you mean 'fsad'",
    ),
    "joint": (
        lambda r: edit(r, "kind: set_criterion", "kind: ce_dice"),
        r"loss 'ce_dice' takes logits, head 'masked_query' gives queries; write 'kind: set_criterion'",
    ),
    "patch": (
        lambda r: edit(r, "[8, 16, 16]", "[8, 18, 16]"),
        r"\(8, 18, 16\) is not divisible.*nearest valid sizes: \(8, 16, 16\) and \(8, 20, 16\)",
    ),
}

DATASETS = {
    "missing folder": (lambda d: d.rename(d.with_name("elsewhere")), r"Dataset001_Boxes: no such folder"),
    "image without label": (lambda d: (d / LABEL).unlink(), r"labelsTr: no case_01\.nii\.gz for the image"),
    "label without image": (lambda d: (d / IMAGE).unlink(), r"case_01\.nii\.gz: no image case_01_0000\.nii\.gz"),
    "undeclared value": (
        lambda d: change_image(d, with_label_seven, LABEL),
        r"case_01\.nii\.gz: label values 7, expected 0 … 2",
    ),
    "geometry": (
        lambda d: write_nifti(d / LABEL, np.zeros((18, 18, 9), np.uint8), AFFINE),
        r"case_01\.nii\.gz: shape \(9, 18, 18\).*expected \(9, 18, 20\)",
    ),
    "affine": (
        lambda d: write_nifti(d / LABEL, np.zeros((20, 18, 9), np.uint8), AFFINE * [[1.1], [1], [1], [1]]),
        r"case_01\.nii\.gz: voxels lie up to",
    ),
    "not NIfTI": (
        lambda d: (d / IMAGE).write_bytes(gzip.compress(b"hello")),
        r"case_01_0000\.nii\.gz: not a readable NIfTI file",
    ),
    "truncated": (
        lambda d: (d / IMAGE).write_bytes((d / IMAGE).read_bytes()[:900]),
        r"case_01_0000\.nii\.gz: not a readable NIfTI file",
    ),
    "4-D": (
        lambda d: change_image(d, lambda a: np.stack([a, a], -1)),
        r"case_01_0000\.nii\.gz: 4-D with shape .* expected 3-D",
    ),
    "NaN": (lambda d: change_image(d, with_nan), r"case_01_0000\.nii\.gz: 1 of \d+ voxels are NaN or infinite"),
    "channel count": (lambda d: (d / IMAGE).rename(d / IMAGE.replace("_0000", "_0001")), r"channel 1, but 1 declared"),
    "missing channel": (
        lambda d: edit(d / "dataset.json", '{"0": "CT"}', '{"0": "CT", "1": "PET"}'),
        r"case 'case_00' lacks case_00_0001\.nii\.gz",
    ),
    "region labels": (lambda d: edit(d / "dataset.json", '"right": 2', '"right": [1, 2]'), r"'right' is a region"),
    "file ending": (
        lambda d: edit(d / "dataset.json", ".nii.gz", ".mha"),
        r"file_ending '\.mha', expected '\.nii\.gz'",
    ),
    "invalid JSON": (lambda d: edit(d / "dataset.json", '"labels":', '"labels"'), r"dataset\.json:1:\d+: invalid JSON"),
    "annotated case": (
        lambda d: (d / "annotated.json").write_text('{"case_00": [1], "case_1": [1]}'),
        r"annotated\.json: no case 'case_1'; did you mean 'case_01'",
    ),
    "annotated label": (
        lambda d: (d / "annotated.json").write_text('{"case_00": [1, 3]}'),
        r"annotated\.json: case 'case_00' lists 3, which is no label \(1 left, 2 right\)",
    ),
    "unlisted label": (
        lambda d: (d / "annotated.json").write_text(json.dumps({f"case_0{i}": [1 + (i != 1)] for i in range(4)})),
        r"labelsTr/case_0\d\.nii\.gz: voxels of '\w+' \(\d\), which annotated\.json does not list",
    ),
    "labels disagree": (
        lambda d: edit(d / "dataset.json", '"right": 2', '"rihgt": 2'),
        r"dataset\.json: labels .* differ from the recipe's",
    ),
}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    lines = [
        line for line in captured.err.splitlines() if not re.match(r"measuring|preparing|predicting|evaluating", line)
    ]
    assert code == 2, captured.err
    assert len(lines) == 1, lines
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = RECIPES[name]
    assert main(["validate", str(tiny_recipe)]) == 0
    capsys.readouterr()
    spoil(tiny_recipe)
    for verb in ("validate", "build"):
        assert re.search(message, refused(capsys, verb, tiny_recipe))


@pytest.mark.parametrize("name", DATASETS)
def test_data_sets(
    name: str, tiny_recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = DATASETS[name]
    spoil(dataset)
    out = tmp_path / "run"
    line = refused(capsys, "train", tiny_recipe, "--data", dataset, "--out", out, "--device", "cpu")
    assert re.search(message, line), line
    assert not out.exists()


def test_several_data_sets(
    tiny_recipe: Path, dataset: Path, partial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", tiny_recipe, "--data", dataset, "--out", out, "--device", "cpu"]
    line = refused(capsys, *words, "--data", f"{partial}@all")
    assert """--set 'data.labels={"background": 0, "left": 1, "right": 2, "third": 3}'""" in line
    assert "given twice" in refused(capsys, *words, "--data", dataset)
    assert "nowhere: no such folder" in refused(capsys, *words, "--data", f"{tmp_path / 'nowhere'}@all")
    edit(partial / "dataset.json", "CT", "MRI")
    assert "train on data sets of the same channels" in refused(capsys, *words, "--data", partial)
    assert not out.exists()


def test_several_problems_are_told_one_line_each(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tiny_recipe, "epochs: 2", "epoch: 2")
    edit(tiny_recipe, "kind: unet", "kind: unett")
    assert main(["validate", str(tiny_recipe)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_words_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'train'" in refused(capsys, "trian")
    assert "did you mean 'masked_query'" in refused(capsys, "describe", "masked_qery")
    assert "did you mean 'maskmed_amos'" in refused(capsys, "build", "maskmed_amso")
    assert "no run here" in refused(capsys, "evaluate", tmp_path)
    assert "give either RUN, or" in refused(capsys, "evaluate", "--pred", tmp_path)
    assert "device 'gpu' cannot be used" in refused(
        capsys, "train", "maskmed_phantom", "--data", tmp_path, "--out", tmp_path / "run", "--device", "gpu"
    )
    (tmp_path / "mine.yaml").write_text("mine")
    assert "exists already" in refused(capsys, "copy", "maskmed_amos", tmp_path / "mine.yaml")
    assert "ends in .yaml" in refused(capsys, "copy", "maskmed_amos", tmp_path / "mine.txt")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_prediction_inputs_and_runs(
    tiny_recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    quick = ["--set", "train.epochs=1", "--set", "train.iterations_per_epoch=1"]
    assert main(["train", str(tiny_recipe), "--data", str(dataset), "--out", str(run), "--device", "cpu", *quick]) == 0
    assert "mean over cases" in capsys.readouterr().out
    image = dataset / "imagesTr" / "case_00_0000.nii.gz"
    assert "no such file" in refused(capsys, "predict", run, tmp_path / "no.nii.gz", out)
    assert "convert it to NIfTI" in refused(capsys, "predict", run, tiny_recipe, out)
    second = tmp_path / "case_00_0001.nii.gz"
    second.write_bytes(image.read_bytes())
    assert "has 2 channel files (_0000, _0001), the model takes 1 (CT)" in refused(
        capsys, "predict", run, image, second, out
    )
    recipe = run / "recipe.yaml"
    edit(recipe, "width: 12", "width: 24")
    assert "weights of another recipe" in refused(capsys, "predict", run, image, out)
    edit(recipe, "width: 24", "width: 12")
    again = ["train", tiny_recipe, "--data", dataset, "--out", run, "--device", "cpu", *quick]
    assert "add --resume" in refused(capsys, *again)
    assert "checkpoint of another recipe" in refused(capsys, *again, "--resume", "--set", "train.seed=4")
    (run / "weights_last.safetensors").write_bytes(b"\x80\x04 pickle")
    assert "not a whole safetensors file" in refused(capsys, "predict", run, image, out)
    assert not out.exists()


def test_scores_of_folders(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = dataset / "labelsTr"
    assert (
        main(["evaluate", "--pred", str(reference), "--ref", str(reference), "--json", str(tmp_path / "s.json")]) == 0
    )
    capsys.readouterr()
    assert json.loads((tmp_path / "s.json").read_text())["mean_dice"] == 1
    other = make_dataset(tmp_path / "other", cases=2) / "labelsTr"
    assert "case_02" in refused(capsys, "evaluate", "--pred", other, "--ref", reference)


def test_odd_option_values(
    tiny_recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", tiny_recipe, "--data", dataset, "--out", out]
    assert "workers: expected 0 or more" in refused(capsys, *words, "--workers", "-1")
    assert "train.seed" in refused(capsys, *words, "--seed", "9" * 25)
    assert "device 'meta' cannot be used" in refused(capsys, *words, "--device", "meta")
    assert "there are 4, choose 0 … 3" in refused(capsys, *words, "--fold", "-1")
    assert not out.exists()
    assert main(["list", "[/x]"]) == 0
    assert "nothing matches '[/x]'" in capsys.readouterr().out
    assert "already exists" not in refused(capsys, "demo", "--out", dataset)
