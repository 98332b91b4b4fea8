"""Slab by slab gives what all at once does, whichever axis is the longest, and holds no more than slabs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.spline import nearest_index
from maskmed_zoo.errors import ArgumentError, JointError, MemoryShortageError, NonFiniteError
from maskmed_zoo.inference import image_slab, probability_map, segmented
from maskmed_zoo.inference import predictor as module
from maskmed_zoo.inference import to_image as resample
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.probability_map import ProbabilityMap
from maskmed_zoo.inference.sliding_window import Windows, importance, visit
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe import load_recipe

LOGITS = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "data.normalization": "zscore"}
SHAPES = {
    "z": ((50, 17, 18), (2.0, 1.0, 1.0)),
    "y": ((9, 70, 20), (2.0, 1.0, 1.0)),
    "x": ((9, 20, 75), (2.0, 1.0, 1.0)),
    "finer": ((20, 14, 33), (3.0, 1.7, 1.3)),
    "coarser along the longest": ((13, 30, 90), (2.0, 1.0, 0.4)),
    "thick z": ((11, 20, 25), (7.0, 1.0, 1.0)),
    "thick x": ((11, 20, 25), (1.0, 1.0, 4.0)),
    "smaller than a window": ((3, 9, 10), (2.0, 1.0, 1.0)),
}
"""Voxels and spacing (mm) of images; the recipe has windows of 8 x 16 x 16 voxels of 2 x 1 x 1 mm."""


def made(path: Path, count: int = 1, batch_size: int = 2) -> Predictor:
    recipe = load_recipe(path, LOGITS | {"inference.batch_size": batch_size})
    torch.manual_seed(0)
    models = [model_of(recipe) for _ in range(count)]
    for parameter in (p for model in models for p in model.parameters()):
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Predictor(recipe, models, device="cpu")


def framed(shape: tuple[int, ...], dtype: Any = np.int16) -> np.ndarray:
    """Noise of whole numbers with a frame of zeros on some sides."""
    image = np.random.default_rng(0).normal(0, 100, (1, *shape)).astype(dtype)
    image[:, :1] = image[:, :, -3:] = image[..., :2] = 0
    return image


def dense(predictor: Predictor, image: np.ndarray, spacing: Any) -> np.ndarray:
    """Probabilities (k z y x) in the image's voxels, with all of them held at every step, in 64 bits."""
    ready = predictor.prepare(image, geometry_of(image, spacing=spacing))
    windows = Windows.of(ready.image, predictor.recipe.data.patch_size, predictor.recipe.inference.overlap)
    padded = F.pad(ready.image, [side for sides in reversed(windows.padding) for side in sides])
    total = torch.zeros(3, *windows.shape, dtype=torch.float64)
    weights = importance(windows.window).double()
    for place in windows.places:
        with torch.inference_mode():
            says = [m(padded[(slice(None), *place)][None]).log_probabilities()[0].exp() for m in predictor.models]
        total[(slice(None), *place)] += weights * torch.stack(says).double().mean(0)
    found = total[(slice(None), *windows.inner)]
    found = (found / found.sum(0)).clone()
    region = ready.region
    if region.thick_back is not None:
        axis = region.thick_back
        nearest = nearest_index(found.shape[axis + 1], region.cropped[axis])
        found = found.index_select(axis + 1, torch.from_numpy(nearest))
    found = F.interpolate(found[None], region.cropped, mode="trilinear", align_corners=False)[0]
    whole = np.zeros((3, *region.shape))
    whole[0] = 1
    whole[(slice(None), *region.box)] = found.numpy()
    return whole


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("chunk", [1500, 2**24])
def test_labels_and_probabilities_are_those_of_the_dense_way(
    tiny_recipe: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resample, "CHUNK_ELEMENTS", chunk)
    shape, spacing = SHAPES[name]
    image = framed(shape)
    predictor = made(tiny_recipe, 2 if name == "y" else 1)
    expected = dense(predictor, image, spacing)
    into = np.lib.format.open_memmap(tmp_path / "p.npy", "w+", np.float32, expected.shape)
    prediction = predictor.segment(image, spacing=spacing, probabilities=True, into=into)
    np.testing.assert_allclose(into, expected, atol=1e-5)
    np.testing.assert_allclose(np.stack([p for _, p in prediction.probabilities or ()]), expected, atol=1e-5)
    best = np.sort(expected, 0)
    is_clear = best[-1] - best[-2] > 1e-5
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(prediction.labels[is_clear], expected.argmax(0)[is_clear])
    assert len(np.unique(prediction.labels)) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 5, 7])
def test_batches_go_over_the_border_of_a_slab(tiny_recipe: Path, batch_size: int) -> None:
    """And air in between puts windows into other batches."""
    shape, spacing = (50, 20, 40), (2.0, 1.0, 1.0)
    image = framed(shape)
    image[:, 10:26, :16, 2:20] = 7
    predictor = made(tiny_recipe, batch_size=batch_size)
    expected, into = dense(predictor, image, spacing), np.empty((3, *shape), np.float32)
    prediction = predictor.segment(image, spacing=spacing, into=into)
    np.testing.assert_allclose(into, expected, atol=1e-5)
    assert (prediction.labels != expected.argmax(0)).mean() < 1e-3  # ties


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (3.0, 1.7, 1.3)])
def test_slabs_may_be_kept_and_changed(tiny_recipe: Path, spacing: tuple[float, float, float]) -> None:
    predictor, image = made(tiny_recipe), framed((33, 17, 18))
    found, kept = np.zeros((3, 33, 17, 18), np.float32), list[tuple[tuple[slice, ...], Tensor]]()

    def take(place: tuple[slice, ...], slab: Tensor) -> None:
        kept.append((place, slab.clone()))
        kept.append((place, slab))
        slab.zero_() if len(kept) % 4 else None

    labels = predictor.segment(image, spacing=spacing, slabs=take).labels
    expected = predictor.segment(image, spacing=spacing, probabilities=True)
    np.testing.assert_array_equal(labels, expected.labels)
    for place, slab in kept[::2]:
        found[(slice(None), *place)] = slab.numpy()
    seen = found.sum(0) > 0
    assert seen.mean() > 0.5
    whole = np.stack([p for _, p in expected.probabilities or ()])
    np.testing.assert_allclose(found[:, seen], whole[:, seen], atol=1e-6)
    for (_, copy), (_, slab) in zip(kept[2::4], kept[3::4], strict=True):
        assert torch.equal(copy, slab), "overwritten"


def test_whole_numbers_stay_as_they_are_and_give_what_float32_gives(tiny_recipe: Path) -> None:
    predictor, image = made(tiny_recipe), framed((20, 30, 25))
    expected = predictor.segment(image.astype(np.float32), spacing=(2.0, 1.0, 1.0)).labels
    read = []
    keep = module.crop_and_normalize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "crop_and_normalize", lambda image, *a, **k: read.append(image) or keep(image, *a, **k))
        for dtype in (np.int16, ">i2", np.int32):
            found = predictor.segment(image.astype(dtype), spacing=(2.0, 1.0, 1.0))
            np.testing.assert_array_equal(found.labels, expected)
    assert [part.dtype.name for part in read] == ["int16", "int16", "float32"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_held_does_not_grow_with_the_length(tiny_recipe: Path, axis: int, monkeypatch: Any) -> None:
    window, sums, slabs = (8, 16, 16), list[int](), list[int]()
    add = probability_map.ProbabilitySlabs.take
    cut = image_slab.ImageSlab.__getitem__

    def take(self: probability_map.ProbabilitySlabs, *arguments: Any) -> None:
        add(self, *arguments)
        sums.append(self.sums.shape[axis + 1])

    def window_of(self: image_slab.ImageSlab, *arguments: Any) -> Tensor:
        found = cut(self, *arguments)
        slabs.append(self.held.shape[axis + 1])
        return found

    monkeypatch.setattr(probability_map.ProbabilitySlabs, "take", take)
    monkeypatch.setattr(image_slab.ImageSlab, "__getitem__", window_of)
    predictor, shape = made(tiny_recipe), [*window]
    for length in (5, 10):
        shape[axis] = length * window[axis]
        predictor.segment(np.random.default_rng(0).normal(size=(1, *shape)), spacing=(2.0, 1.0, 1.0))
        assert max(sums) <= window[axis]
        assert max(slabs) <= window[axis]
        assert len(slabs) == 2 * length - 1
        slabs.clear()


def voxelwise(x: Tensor) -> HeadOutput:
    return HeadOutput([StageOutput(logits=torch.cat([x, 2 * x, -x], 1))])


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.6, 0.8])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_add_up(axis: int, overlap: float, batch_size: int) -> None:
    image = torch.randn(1, 31, 9, 6).movedim(1, axis + 1)
    windows = Windows.of(image, (7, 7, 7), overlap)
    assert windows.axis == axis
    *visited, last = visit(voxelwise, image, windows, batch_size=batch_size, device="cpu")
    found = ProbabilityMap(windows, 3)
    for places, output in visited:
        found.take(places, output)
    with pytest.raises(JointError, match="windows of the volume are missing"):
        found.result()
    found.take(*last)
    expected = torch.cat([image, 2 * image, -image]).double().softmax(0).float()
    torch.testing.assert_close(found.result(), expected, atol=1e-5, rtol=0)
    with pytest.raises(JointError, match="windows do not come in order: slice 24, where 31 is due"):
        found.take(*last)


def test_windows_in_another_order_are_refused() -> None:
    image = torch.randn(1, 30, 9, 13)
    windows = Windows.of(image, (7, 7, 7), 0.6)
    first, *_, last = visit(voxelwise, image, windows, batch_size=1, device="cpu")
    found = ProbabilityMap(windows, 3)
    found.take(*first)
    with pytest.raises(JointError, match="windows do not come in order: slice 23, where 0 is due"):
        found.take(*last)


def test_a_network_that_fails_in_one_window_is_told() -> None:
    image = torch.randn(1, 30, 9, 13)
    windows = Windows.of(image, (7, 7, 7), 0.5)
    given: list[Tensor] = []
    slabs = probability_map.ProbabilitySlabs(windows, 3, given.append)
    taken = visit(voxelwise, image, windows, batch_size=1, device="cpu")
    for _ in range(20):
        slabs.take(*next(taken))
    broken = voxelwise(torch.full((1, 1, 7, 7, 7), torch.nan))

    def rest() -> None:
        for places, _ in taken:
            slabs.take(places, broken)

    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        rest()
    assert given  # what came before was finished


@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_of_one_value_share_an_output(batch_size: int) -> None:
    image = torch.full((2, 40, 8, 8), -1.0)
    image[1] = 2.0
    image[:, 12] = torch.randn(2, 8, 8)  # two windows see it
    image[:, 28:] = 5.0
    windows = Windows.of(image, (8, 8, 8), 0.5)
    calls: list[int] = []
    torch.manual_seed(0)
    net = torch.nn.Conv3d(2, 3, 3, padding=1)

    def says(x: Tensor) -> HeadOutput:
        calls.append(len(x))
        return HeadOutput([StageOutput(logits=net(x))])

    found, each = ProbabilityMap(windows, 3), ProbabilityMap(windows, 3)
    for places, output in visit(says, image, windows, batch_size=batch_size, device="cpu"):
        found.take(places, output)
    assert len(windows.places) == 9
    assert sum(calls) == 2 + 1 + 2  # two with noise, those across 28, air, and fives
    for place in windows.places:
        with torch.inference_mode():
            each.take([place], HeadOutput([StageOutput(logits=net(image[(slice(None), *place)][None]))]))
    torch.testing.assert_close(found.result(), each.result())
    np.testing.assert_array_equal(found.result().argmax(0), each.result().argmax(0))


def test_an_image_is_read_in_order(tiny_recipe: Path) -> None:
    predictor = made(tiny_recipe)
    image = np.random.default_rng(0).normal(size=(1, 40, 16, 16)).astype(np.float32)
    geometry = geometry_of(image, spacing=(2.0, 1.0, 1.0))
    slab = image_slab.ImageSlab(predictor._cropped(image, geometry, 0), 0)  # pyright: ignore[reportPrivateUsage]
    expected = predictor.prepare(image, geometry).image
    whole = slice(0, 16)
    for start in (0, 4, 30):
        torch.testing.assert_close(slab[:, start : start + 8, whole, whole], expected[:, start : start + 8])
    with pytest.raises(JointError, match="windows do not come in order: slice 4 after 30"):
        slab[:, 4:12, whole, whole]


def test_a_place_for_probabilities_is_checked(tiny_recipe: Path) -> None:
    predictor, image = made(tiny_recipe), framed((9, 20, 18))
    wrong: list[Any] = [np.empty((3, 9, 20, 17), np.float32), np.empty((3, 9, 20, 18), np.int16)]
    for into in wrong:
        with pytest.raises(ArgumentError, match=r"into: expected floating point numbers \(3, 9, 20, 18\), got"):
            predictor.segment(image, spacing=(2.0, 1.0, 1.0), into=into)  # type: ignore[arg-type]
    half = np.empty((3, 9, 20, 18), np.float16)
    predictor.segment(image, spacing=(2.0, 1.0, 1.0), into=half)
    np.testing.assert_allclose(half, predictor.probabilities(image, spacing=(2.0, 1.0, 1.0)), atol=1e-3)


def test_more_than_memory_holds_is_told_before_the_first_window(tiny_recipe: Path, monkeypatch: Any) -> None:
    predictor, calls = made(tiny_recipe), list[int]()
    predictor.model.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("maskmed_zoo.memory.available", lambda: 1000)
    with pytest.raises(MemoryShortageError, match=r"image: 9 x 20 x 18 voxels at the recipe's spacing, of 3 labels"):
        predictor.segment(np.ones((1, 9, 20, 18), np.float32), spacing=(2.0, 1.0, 1.0))
    assert not calls


@pytest.mark.parametrize("head", ["masked_query", "pointwise"])
def test_objects_are_counted_before_the_first_window(tiny_recipe: Path, head: str, monkeypatch: Any) -> None:
    loss = "set_criterion" if head == "masked_query" else "ce_dice"
    changes = {"model.head.kind": head, "model.loss.kind": loss, "data.normalization": "zscore"}
    changes |= {"model.head.num_queries": 6} if head == "masked_query" else {}
    image = np.random.default_rng(0).normal(size=(1, 9, 20, 18))
    needed: list[int] = []
    for instances in (None, "components"):
        recipe = load_recipe(tiny_recipe, changes | {"data.instances": instances})
        predictor = Predictor(recipe, model_of(recipe), device="cpu")
        monkeypatch.setattr("maskmed_zoo.memory.available", lambda: 0)
        with pytest.raises(MemoryShortageError) as caught:
            predictor.segment(image, spacing=(2.0, 1.0, 1.0))
        assert ("of 3 labels and their objects, which needs" in str(caught.value)) == (instances is not None)
        sizes = list[int]()
        monkeypatch.setattr(segmented, "check_available", lambda size, _, sizes=sizes: sizes.append(size))
        assert (predictor.segment(image, spacing=(2.0, 1.0, 1.0)).instances is None) == (instances is None)
        monkeypatch.undo()
        needed += sizes
    without, with_objects = needed
    assert (with_objects - without) / (9 * 20 * 18) == (20 if head == "masked_query" else 16)


def test_a_gpu_without_memory_falls_back_to_the_cpu(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor, image = made(tiny_recipe), framed((9, 20, 18))
    expected = predictor.segment(image, spacing=(2.0, 1.0, 1.0)).labels
    where: list[tuple[str, str]] = []
    moves: list[str] = []
    run = Predictor._segment  # pyright: ignore[reportPrivateUsage]

    def segment(self: Predictor, image: Any, geometry: Any, network: Any, sums: Any, **rest: Any) -> Any:
        where.append((network.type, sums.type))
        if network.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return run(self, image, geometry, network, sums, **rest)

    monkeypatch.setattr(Predictor, "_segment", segment)
    monkeypatch.setattr(SegmentationModel, "to", lambda model, device: moves.append(device.type) or model)
    predictor.device = torch.device("cuda")
    with caplog.at_level(logging.WARNING):
        found = predictor.segment(image, spacing=(2.0, 1.0, 1.0))
    np.testing.assert_array_equal(found.labels, expected)
    assert where == [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cpu")]
    assert moves == ["cpu"], "not back before it is needed there"
    first, second = [record.getMessage() for record in caplog.records]
    assert (
        "cuda: out of memory (CUDA out of memory. Tried to allocate 9 GiB.); windows are summed up on the CPU" in first
    )
    assert "segmented on the CPU" in second


class Gpu:
    """A GPU whose memory others use up: networks are moved to it in pretence, while there is room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> None:
        self.moves: list[str] = []
        self.has_room, predictor.device = False, torch.device("cuda")

        def move(model: SegmentationModel, device: torch.device) -> SegmentationModel:
            assert not torch.is_inference_mode_enabled()
            self.moves.append(device.type)
            if device.type == "cuda" and not self.has_room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return model

        monkeypatch.setattr(SegmentationModel, "to", move)


def test_a_network_for_which_there_is_no_room_on_the_gpu_any_more_stays_on_the_cpu(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing that was computed there is lost."""
    predictor, image = made(tiny_recipe), framed((9, 20, 18))
    expected = predictor.segment(image, spacing=(2.0, 1.0, 1.0)).labels
    gpu = Gpu(monkeypatch, predictor)
    for _ in range(2):
        gpu.moves.clear()
        caplog.clear()
        np.testing.assert_array_equal(predictor.segment(image, spacing=(2.0, 1.0, 1.0)).labels, expected)
        assert gpu.moves == ["cuda", "cuda", "cpu"]
        assert "this case is segmented on the CPU" in caplog.records[-1].getMessage()


def test_who_uses_the_network_after_that_finds_it_on_its_device(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, image = made(tiny_recipe), framed((9, 20, 18))
    gpu = Gpu(monkeypatch, predictor)
    predictor.segment(image, spacing=(2.0, 1.0, 1.0))
    gpu.has_room = True
    windows = torch.zeros(1, 1, 8, 16, 16)
    uses: list[Callable[[], object]] = [
        lambda: predictor.model,
        lambda: predictor.run(windows),
        lambda: predictor.network_probabilities(windows[0]),
    ]
    for use in uses:
        gpu.moves.clear()
        with torch.inference_mode(), suppress(AssertionError, RuntimeError):  # of windows that are not on a GPU
            use()
        assert gpu.moves == ["cuda"]
