"""`predict` with several runs, their best and last weights, and other settings of inference than the recipe's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.errors import ArgumentError, RecipeError
from maskmed_zoo.files import write_text
from maskmed_zoo.recipe import dump_recipe, load_recipe
from maskmed_zoo.runner.run_folder import RunFolder

EARLIER = Path(__file__).parent / "earlier_run"
SPACING = (2.0, 1.0, 1.0)


def run_of(folder: Path, seed: int, **changes: object) -> Path:
    """The run of an earlier version with other weights, last and best, and perhaps another recipe."""
    shutil.copytree(EARLIER, folder)
    run = RunFolder(folder)
    recipe = load_recipe(run.recipe(), changes)
    write_text(run.recipe_file, dump_recipe(recipe))
    torch.manual_seed(seed)
    for which in ("last", "best"):
        model = zoo.create(recipe)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        run.save_weights(model, which, recipe)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of one recipe and one of another network."""
    folder = tmp_path_factory.mktemp("runs")
    other = {"model.head": {"kind": "pointwise"}, "model.loss": {"kind": "ce_dice"}}
    return [run_of(folder / "a", 1), run_of(folder / "b", 2), run_of(folder / "c", 3, **other)]


def image() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 100, size=(12, 24, 20)).astype(np.float32)


def probabilities(source: Any, **how: Any) -> np.ndarray:
    return zoo.load(source, device="cpu", **how).probabilities(image(), spacing=SPACING)


def test_several_are_averaged_as_by_hand(runs: list[Path]) -> None:
    each = [probabilities(run) for run in runs]
    assert min(np.abs(one - other).mean() for one, other in pairwise(each)) > 0.005
    np.testing.assert_allclose(probabilities(runs), np.mean(each, 0, dtype=np.float64), atol=1e-6)
    mirrored = [probabilities(run, inference__mirror=True) for run in runs]
    together = probabilities(runs, inference__mirror=True)
    np.testing.assert_allclose(together, np.mean(mirrored, 0, dtype=np.float64), atol=1e-6)
    assert np.abs(together - np.mean(each, 0)).max() > 0.01


def test_best_and_last_weights_of_one_run(runs: list[Path], tmp_path: Path) -> None:
    last, best = probabilities(runs[0]), probabilities(runs[0], weights="best")
    assert np.abs(last - best).mean() > 0.01
    np.testing.assert_array_equal(probabilities(f"{runs[0]}@best"), best)
    np.testing.assert_array_equal(probabilities(f"{runs[0]}@last", weights="best"), last)
    both = [f"{runs[0]}@best", runs[0]]
    np.testing.assert_allclose(probabilities(both), (last.astype(float) + best) / 2, atol=1e-6)
    shutil.copytree(runs[1], tmp_path / "mine@best")
    np.testing.assert_array_equal(probabilities(tmp_path / "mine@best"), probabilities(runs[1]))


def test_several_are_known_by_all_their_weights(runs: list[Path]) -> None:
    sums = [zoo.load(source, device="cpu").weights_sha256 for source in (*runs[:2], runs[:2], runs[1::-1])]
    assert len(set(sums)) == 3
    assert sums[2] == sums[3]


def test_precision_is_that_of_all_or_float32(runs: list[Path], tmp_path: Path) -> None:
    """Whichever comes first."""
    low = [run_of(tmp_path / str(seed), seed, **{"train.amp": "bf16"}) for seed in (1, 2)]
    assert zoo.load(low, device="cpu").dtype == torch.bfloat16
    for several in ([low[0], runs[1]], [runs[1], low[0]]):
        assert zoo.load(several, device="cpu").dtype is None
    full = [run_of(tmp_path / "off", 1, **{"train.amp": "off"}), runs[1]]
    np.testing.assert_array_equal(probabilities([low[0], runs[1]]), probabilities(full))
    assert np.abs(probabilities(low[0]) - probabilities(full[0])).max() > 1e-4


def test_the_command_is_the_call(runs: list[Path], dataset: Path, tmp_path: Path, capsys: Any) -> None:
    images = str(dataset / "imagesTr")
    words = ["--with", f"{runs[1]}@best", images, str(tmp_path / "out"), "--device", "cpu"]
    words += ["--set", "inference.mirror=true", "--set", "inference.overlap=0.25", "--with", str(runs[2])]
    assert main(["predict", str(runs[0]), *words, "--part", "1/2"]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == ["case_00.nii.gz", "case_02.nii.gz"]
    assert main(["predict", str(runs[0]), *words]) == 0
    said = capsys.readouterr()
    assert [Path(line).name for line in said.out.splitlines()] == ["case_01.nii.gz", "case_03.nii.gz"]
    assert "2 finished before and skipped" in said.err
    sources = [runs[0], f"{runs[1]}@best", runs[2]]
    predictor = zoo.load(sources, device="cpu", inference__mirror=True, inference__overlap=0.25)
    volume = read_image(dataset / "imagesTr" / "case_00_0000.nii.gz")
    expected = predictor.segment(volume.array, volume.geometry).labels
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "case_00.nii.gz").array, expected)
    assert predictor.files(images, tmp_path / "out") == []


def refused(call: Callable[[], object], words: str, error: type[Exception] = ArgumentError) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_runs_that_see_an_image_in_another_way_are_refused(runs: list[Path], tmp_path: Path) -> None:
    ways: dict[str, dict[str, object]] = {
        "data.labels.right was 2, now None": {"data.labels": {"background": 0, "left": 1, "other": 2}},
        r"data.spacing was \[2.0, 1.0, 1.0\], now \[2.0, 2.0, 1.0\]": {"data.spacing": [2, 2, 1]},
        r"data.patch_size was \[8, 16, 16\]": {"data.patch_size": [8, 16, 8]},
        r"data.channels was \['CT'\], now \['MR'\]": {"data.channels": ["MR"], "data.normalization": "ct"},
        r"data.normalization was \['ct'\], now \['zscore'\]": {"data.normalization": "zscore"},
    }
    for number, (words, changes) in enumerate(ways.items()):
        other = run_of(tmp_path / str(number), 4, **changes)
        refused(lambda other=other: zoo.load([runs[0], other], device="cpu"), f"cannot be averaged with .*: {words}")
    other = run_of(tmp_path / "axes", 4, **{"data.mirror_axes": ["y"]})
    assert len(zoo.load([runs[0], other], device="cpu").models) == 2
    refused(lambda: zoo.load([runs[0], other], device="cpu", inference__mirror=True), r"mirror_axes was \['z', 'y'\]")
    refused(lambda: zoo.load([], device="cpu"), "got none")
    refused(lambda: zoo.load([runs[0], 3], device="cpu"), "source: expected the folder")  # type: ignore[list-item]


def test_only_inference_can_be_set(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("data__spacing", "train__epochs", "model__head__kind", "name"):
        path = key.replace("__", ".")
        wrong: dict[str, Any] = {key: 1}
        refused(lambda wrong=wrong: zoo.load(runs[0], **wrong), rf"{path}: belongs to what was trained")
    refused(lambda: zoo.load(runs[0], inference__overlap=1.5), "inference.overlap: input should be less", RecipeError)
    refused(lambda: zoo.load(runs[0], inference__overlapp=0.5), "did you mean 'overlap'", RecipeError)
    refused(lambda: zoo.load(runs[0], overlap=0.5), "did you mean 'inference__overlap'")
    plain = run_of(tmp_path / "plain", 5, **{"data.mirror_axes": []})
    refused(lambda: zoo.load(plain, inference__mirror=True), "trained without mirroring")
    capsys.readouterr()
    assert main(["predict", str(runs[0]), "in", "out", "--set", "train.epochs=3"]) == 2
    assert capsys.readouterr().err.startswith("train.epochs: belongs to what was trained; at prediction ")
    assert main(["predict", str(runs[0]), "in", "out", "--set", "mirror=true"]) == 2
    assert capsys.readouterr().err == "mirror: did you mean inference.mirror?\n"
