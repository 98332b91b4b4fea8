"""A predictor without a run folder: arrays and files in and out, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.errors import ArgumentError, CheckpointError, DataError, RecipeError
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.sliding_window import Consumer, Place, Windows, visit
from maskmed_zoo.recipe import load_recipe

OVERRIDES = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "data.normalization": "zscore"}


@pytest.fixture
def predictor(tiny_recipe: Path) -> Predictor:
    torch.manual_seed(0)
    recipe = load_recipe(tiny_recipe, OVERRIDES)
    return Predictor(recipe, model_of(recipe), device="cpu")


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_arrays_with_spacing(predictor: Predictor) -> None:
    array = image(1, 9, 20, 18)
    prediction = predictor.segment(array, spacing=(2.0, 1.0, 1.0))
    probabilities = predictor.probabilities(array, spacing=(2.0, 1.0, 1.0))
    assert prediction.labels.shape == (9, 20, 18)
    assert probabilities.shape == (3, 9, 20, 18)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(0), prediction.labels)
    np.testing.assert_array_equal(predictor.segment(array[0], spacing=(2.0, 1.0, 1.0)).labels, prediction.labels)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = 5
    placed = predictor.segment(array, affine=affine)
    np.testing.assert_array_equal(placed.labels, prediction.labels)
    assert placed.geometry.spacing == (2.0, 1.0, 1.0)


def test_another_spacing_is_resampled_and_comes_back(predictor: Predictor) -> None:
    array = image(1, 9, 11, 13)
    prediction = predictor.segment(array, spacing=(4.0, 2.5, 1.5))
    probabilities = predictor.probabilities(array, spacing=(4.0, 2.5, 1.5))
    assert prediction.labels.shape == probabilities.shape[1:] == (9, 11, 13)
    agree = (probabilities.argmax(0) == prediction.labels).mean()
    assert agree > 0.999  # both are trilinear, in another order of operations


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (4.0, 2.5, 1.5)])
def test_probabilities_come_label_by_label(predictor: Predictor, spacing: tuple[float, float, float]) -> None:
    array = image(1, 9, 11, 13)
    array[:, :2] = array[..., -3:] = 0  # outside of the region seen
    expected = predictor.probabilities(array, spacing=spacing)
    prediction = predictor.segment(array, spacing=spacing, probabilities=True)
    assert prediction.probabilities is not None
    for _ in range(2):
        names, found = zip(*prediction.probabilities, strict=True)
        assert names == predictor.labels.names
        np.testing.assert_array_equal(np.stack(found), expected)
    assert predictor.segment(array, spacing=spacing).probabilities is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_get_images_of_it(predictor: Predictor, dtype: torch.dtype) -> None:
    array = image(1, 9, 20, 18)
    expected = predictor.probabilities(array, spacing=(2.0, 1.0, 1.0))
    predictor.model.to(dtype)
    np.testing.assert_allclose(predictor.probabilities(array, spacing=(2.0, 1.0, 1.0)), expected, atol=0.03)


def test_files_are_those_of_arrays(predictor: Predictor, dataset: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = dataset / "imagesTr"
    written = predictor.files([folder], tmp_path / "out", progress=lambda *count: seen.append(count))
    assert [path.name for path in written] == [f"case_0{i}.nii.gz" for i in range(4)]
    assert seen == [(i, 4) for i in range(1, 5)]
    volume = read_image(folder / "case_00_0000.nii.gz")
    np.testing.assert_array_equal(
        read_labels(written[0]).array, predictor.segment(volume.array, volume.geometry).labels
    )
    assert predictor.files([folder], tmp_path / "out") == []
    stamp = json.loads((tmp_path / "out" / ".maskmed_predictions.json").read_text())
    assert set(stamp["weights_sha256"].values()) == {predictor.weights_sha256}


def test_weights_without_a_file_are_known_by_their_content(predictor: Predictor) -> None:
    same = Predictor(predictor.recipe, predictor.model, device="cpu")
    assert same.weights_sha256 == predictor.weights_sha256
    next(iter(predictor.model.parameters())).data += 1
    assert Predictor(predictor.recipe, predictor.model, device="cpu").weights_sha256 != predictor.weights_sha256


def test_mistakes_are_one_line(predictor: Predictor, tiny_recipe: Path) -> None:
    for call, error, words in (
        (lambda: predictor.segment(image(1, 8, 16, 16)), ArgumentError, "give one of spacing"),
        (lambda: predictor.segment(image(16, 16), spacing=(1, 1, 1)), ArgumentError, r"got shape \(1?,? ?16, 16\)"),
        (lambda: predictor.segment(cast(Any, "scan.nii.gz"), spacing=(1, 1, 1)), ArgumentError, "got str; for files"),
        (lambda: predictor.segment(image(1, 8, 16, 16) * np.nan, spacing=(1, 1, 1)), ArgumentError, "NaN or infinity"),
        (
            lambda: predictor.segment(image(1, 8, 16, 16), cast(Any, (1, 1, 1))),
            ArgumentError,
            "give a spacing as spacing",
        ),
        (lambda: predictor.segment(image(2, 8, 16, 16), spacing=(1, 1, 1)), DataError, "2 channels, expected 1"),
        *(
            (
                lambda s=s: predictor.segment(image(1, 8, 16, 16), spacing=cast(Any, s)),
                ArgumentError,
                "three positive numbers",
            )
            for s in ((1, 1), (0, 1, 1), 1.0, (1, float("nan"), 1), (1, -1, 1))
        ),
        *(
            (lambda a=a: predictor.segment(image(1, 8, 16, 16), affine=a), ArgumentError, "invertible 4x4 matrix")
            for a in (np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan))
        ),
        *(
            (lambda a=a: predictor.segment(image(1, 8, 16, 16), affine=a), ArgumentError, "does not lie as in RAS")
            for a in (np.diag([-1.0, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]])
        ),
        (lambda: predictor.segment(image(1, 8, 16, 16), spacing=(1, 1, 1), affine=np.eye(4)), ArgumentError, "one of"),
        (
            lambda: predictor.segment(image(1, 8, 16, 16), geometry_of(image(1, 2, 2, 2), spacing=(1, 1, 1))),
            ArgumentError,
            r"its geometry \(2, 2, 2\)",
        ),
        (lambda: zoo.load("nowhere", weights="lst"), ArgumentError, "'last' or 'best'"),  # type: ignore[arg-type]
        (zoo.evaluate, ArgumentError, "either a run, or pred and ref"),
        (
            lambda: zoo.evaluate("run", labels={"background": 0, "a": 1}),
            ArgumentError,
            "labels.* belong to pred and ref",
        ),
        (lambda: zoo.evaluate(pred="a", ref="b", device="cpu"), ArgumentError, "belong to a run"),
        (lambda: zoo.evaluate(pred="a", ref="b", metrics="dise"), ArgumentError, "no metric 'dise'"),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    unbound = load_recipe(tiny_recipe, OVERRIDES | {"data.labels": None})
    with pytest.raises(RecipeError, match=r"leaves data\.labels to the data set"):
        Predictor(unbound, predictor.model, device="cpu")


class FinestDifference:
    """A consumer whose output has other axes than (k d h w): the largest mask logit of each window."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, ...], float] = {}

    def take(self, places, output: HeadOutput) -> None:
        for place, logits in zip(places, output.stages[0].spatial, strict=True):
            self.found[tuple(axis.start for axis in place)] = float(logits.max())


def test_any_consumer_can_take_the_windows(predictor: Predictor) -> None:
    prepared = torch.from_numpy(image(1, 12, 24, 20))
    windows = Windows.of(prepared, (8, 16, 16), 0.5)
    consumer = FinestDifference()
    also: Consumer = consumer
    for places, output in visit(predictor.run, prepared, windows, batch_size=3, device="cpu"):
        assert not torch.is_inference_mode_enabled()
        also.take(places, output)
    assert list(consumer.found) == [tuple(axis.start for axis in place) for place in windows.places]
    last: Place = windows.places[-1]
    with torch.inference_mode():
        whole: Tensor = predictor.run(prepared[(slice(None), *last)][None]).stages[0].spatial
    assert list(consumer.found.values())[-1] == pytest.approx(float(whole.max()), abs=1e-5)


def test_one_output_is_held_at_a_time(predictor: Predictor) -> None:
    alive: list[int] = []
    outputs: list[weakref.ref[HeadOutput]] = []

    def says(_module: nn.Module, _inputs: object, output: HeadOutput) -> None:
        outputs.append(weakref.ref(output))

    predictor.model.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in outputs)))
    predictor.model.register_forward_hook(says)
    predictor.segment(image(1, 12, 24, 20), spacing=(2.0, 1.0, 1.0))
    assert alive == [0] * 8


def test_a_recipe_without_its_loss_reads_it_when_it_is_needed() -> None:
    from maskmed_zoo.build import network_facts

    recipe = zoo.load(Path(__file__).resolve().parents[1] / "runner" / "earlier_run", device="cpu").recipe
    assert network_facts(recipe)["num_classes"] == 3


TRAINING = (
    "maskmed_zoo.runner.train",
    "maskmed_zoo.runner.trainer",
    "maskmed_zoo.losses",
    "maskmed_zoo.data.augmentation",
)


def test_load_imports_nothing_of_training(tmp_path: Path) -> None:
    """A run of an earlier version is loaded and used in a fresh process."""
    run = Path(__file__).resolve().parents[1] / "runner" / "earlier_run"
    program = f"""
import json, sys
import numpy as np
import maskmed_zoo as zoo
predictor = zoo.load({str(run)!r}, device="cpu")
predictor.segment(np.zeros((1, 9, 18, 20), np.float32), spacing=(2.0, 1.0, 1.0))
print(json.dumps([m for m in sys.modules if m.startswith("maskmed_zoo")]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "maskmed_zoo.inference.predictor" in loaded
    assert not [module for module in loaded if module.startswith(TRAINING)]
    components = {m for m in loaded if m.split(".")[1:2] in (["encoders"], ["necks"], ["decoders"], ["heads"])}
    named = {
        "encoders.plain_conv",
        "encoders.pyramid",
        "necks.fsad",
        "necks.tokens",
        "decoders.unet",
        "heads.masked_query",
    }
    named |= {"encoders", "necks", "decoders", "heads", "decoders.pyramid"}
    assert components <= {f"maskmed_zoo.{name}" for name in named}, "only what the recipe names"


def test_what_is_no_run(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(CheckpointError, match="no run here"):
        zoo.load(tmp_path)
    with pytest.raises(CheckpointError, match="no run here"):
        zoo.load(dataset)


@pytest.mark.parametrize("dtype", ["str", "complex"])
def test_an_array_of_no_numbers_is_refused(tiny_recipe, dtype):
    recipe = load_recipe(tiny_recipe)
    predictor = Predictor(recipe, model_of(recipe), device="cpu")
    with pytest.raises(ArgumentError, match=r"expected an array of numbers \(c z y x\), got ndarray of .*files\(\)"):
        predictor.segment(np.ones((4, 5, 6)).astype(dtype), spacing=(1, 1, 1))


def test_an_array_is_no_file(tiny_recipe, tmp_path):
    recipe = load_recipe(tiny_recipe)
    predictor = Predictor(recipe, model_of(recipe), device="cpu")
    wrong: list[Any] = [np.ones((4, 5, 6)), [np.ones((4, 5, 6))]]
    for inputs in wrong:
        with pytest.raises(ArgumentError, match=r"inputs: expected paths of images .* for arrays there is segment"):
            predictor.files(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
