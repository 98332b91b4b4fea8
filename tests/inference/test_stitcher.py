"""Objects: the panoptic rule against Hugging Face's, stitching by hand and against whole volumes, and the label map."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import ndimage
from transformers.models.mask2former.image_processing_mask2former import compute_segments, remove_low_and_no_objects

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.inference.probability_map import ProbabilityMap
from maskmed_zoo.inference.sliding_window import Windows, visit
from maskmed_zoo.inference.stitcher import Instances, Stitcher, bytes_needed, follow_labels, from_queries
from maskmed_zoo.inference.to_image import nearest


def stage_of(objects: list[tuple[int, torch.Tensor]], classes: int = 3, certainty: float = 9.0) -> StageOutput:
    """A sample in which one query after the other is sure of its label and its mask (d h w) bool."""
    masks = torch.stack([torch.where(mask, certainty, -certainty) for _, mask in objects])[None]
    logits = torch.zeros(1, len(objects), classes + 1)
    for query, (label, _) in enumerate(objects):
        logits[0, query, label] = certainty
    return StageOutput(masks=masks, class_logits=logits)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two maps of numbers differ in the numbers alone; 0 is none in both."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    is_one_to_one = len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    return is_one_to_one and bool(((pairs == 0).sum(0) != 1).all())


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_hugging_face(seed: int) -> None:
    """Volumes as tall pictures. Masks are clear, so that it does not matter that its masks are weighed by the score."""
    torch.manual_seed(seed)
    size, queries, labels, threshold = (4, 12, 12), 9, 4, 0.55
    coarse = torch.randn(1, queries, 2, 4, 4)
    masks = 30 * (torch.nn.functional.interpolate(coarse, size, mode="trilinear") - 0.5)
    class_logits = 4 * torch.randn(1, queries, labels + 1)
    class_logits[..., 0] = -20  # its rule knows no background
    (found,) = from_queries(StageOutput(masks=masks, class_logits=class_logits), threshold)
    scores, classes = class_logits[0].softmax(-1).max(-1)
    kept = remove_low_and_no_objects(masks[0].flatten(1, 2).sigmoid(), scores, classes, threshold, labels)
    assert len(kept[0]) >= 2
    segments, facts = compute_segments(
        *kept, mask_threshold=0.5, overlap_mask_area_threshold=0.8, label_ids_to_fuse=set()
    )
    segments = segments.numpy().reshape(size)
    # All voxels that a query wins are its object there, those outside its mask too, which count for its share.
    expected = []
    for fact in facts:
        query = int((scores - fact["score"]).abs().argmin())
        inside = masks[0, query].numpy() >= 0
        own = (segments == fact["id"]) & inside
        if own.sum() >= 0.8 * inside.sum():
            expected.append((fact["label_id"], fact["score"], own))
    assert expected
    assert len(found.labels) == found.ids.max() == len(expected)
    for number, (label, score, own) in enumerate(expected, start=1):
        np.testing.assert_array_equal(found.ids == number, own)
        assert (found.labels[number - 1], found.scores[number - 1]) == (label, pytest.approx(score, abs=1e-5))


def box(shape: tuple[int, ...], *corners: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(a, b) for a, b in corners)] = True
    return mask


def test_rule_by_hand() -> None:
    shape = (2, 6, 10)
    left, right = box(shape, (0, 2), (0, 4), (0, 4)), box(shape, (0, 2), (0, 4), (5, 9))
    half = box(shape, (0, 2), (0, 4), (0, 8))  # most of it is taken by surer queries
    stage = stage_of([(1, left), (1, right), (2, half), (0, ~left & ~right), (3, right)])
    stage.class_logits[0, 2] *= 0.3  # pyright: ignore
    (found,) = from_queries(stage, 0.5)
    assert found.labels == (1, 1)
    assert all(score and score > 0.99 for score in found.scores)
    np.testing.assert_array_equal(found.ids, left + 2 * right.int())
    (none,) = from_queries(stage, 1.0)
    assert none.labels == ()
    assert not none.ids.any()


def test_background_takes_voxels_and_leaves_no_object() -> None:
    shape = (2, 4, 10)
    lesion = box(shape, (0, 2), (0, 4), (0, 10))
    sure = box(shape, (0, 2), (0, 4), (0, 3))
    stage = stage_of([(1, lesion), (0, sure)])
    stage.class_logits[0, 0] *= 0.5  # pyright: ignore
    (found,) = from_queries(stage, 0.5)
    assert found.labels == ()  # 70 % of its mask is left


def test_a_head_with_logits_is_refused() -> None:
    with pytest.raises(JointError, match="gives logits"):
        from_queries(StageOutput(logits=torch.zeros(1, 2, 2, 2, 2)), 0.5)


def balls(shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """Numbers of balls of radius 3 that may touch, labels 1 and 2 by odd and even."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    numbers, nearest = np.zeros(shape, int), np.full(shape, 9.0)
    for number in range(1, count + 1):
        centre = rng.uniform(3, np.array(shape) - 4)
        distance = ((grid - centre[:, None, None, None]) ** 2).sum(0)
        numbers[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    return numbers


@pytest.mark.parametrize(("seed", "batch"), [(0, 1), (1, 3), (2, 2), (3, 1)])
def test_windows_join_to_the_objects_of_the_volume(seed: int, batch: int) -> None:
    """A network that sees every object of its window right gives every object of the volume, whatever its seams."""
    shape, window, overlap = (13, 22, 30), (8, 10, 12), 0.5
    truth = balls(shape, 9, seed)
    image = torch.from_numpy(truth)[None].float()
    windows = Windows(shape, window, overlap)
    stitcher, probabilities = Stitcher(windows, threshold=0.5), ProbabilityMap(windows, 3)
    calls = 0

    def says(windows: torch.Tensor) -> tuple[StageOutput, StageOutput]:
        nonlocal calls
        calls += 1
        masks = torch.stack([windows[:, 0] == number for number in range(1, 10)], 1)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(calls))  # queries change from call to call
        logits = torch.full((len(windows), 9, 4), -9.0)
        for query, number in enumerate(order.tolist()):
            there = masks[:, number].flatten(1).any(1)
            logits[range(len(windows)), query, torch.where(there, 1 + number % 2, 3)] = 9.0
        objects = StageOutput(masks=torch.where(masks[:, order], 9.0, -9.0), class_logits=logits)
        labels = torch.stack(
            [windows[:, 0] == 0, windows[:, 0] % 2 == 1, (windows[:, 0] > 0) & (windows[:, 0] % 2 == 0)], 1
        )
        return objects, StageOutput(logits=torch.where(labels, 0.0, -9.0))

    for where, both in visit(lambda x: HeadOutput([*says(x)]), image, windows, batch_size=batch, device="cpu"):
        stitcher.take(where, HeadOutput(both.stages[:1]))
        probabilities.take(where, HeadOutput(both.stages[1:]))
    found = stitcher.result()
    places = len(windows.places)
    assert calls == -(-places // batch)
    assert places >= 27
    assert same_partition(found.ids, truth)
    np.testing.assert_array_equal(np.array([0, *found.labels])[found.ids], np.where(truth == 0, 0, 2 - truth % 2))
    followed = follow_labels(found, probabilities.result().argmax(0).numpy(), (1, 1, 1))
    assert same_partition(followed.ids, truth)


def test_small_volume_is_cut_out_of_its_padding() -> None:
    windows = Windows((3, 4, 5), (5, 8, 8), 0.5)
    stitcher = Stitcher(windows, threshold=0.5)
    lesion = torch.zeros(5, 8, 8, dtype=torch.bool)
    lesion[1:4, 2:6, 1:3] = True  # the volume begins at (1, 2, 1)
    stitcher.take(windows.places, HeadOutput([stage_of([(2, lesion)])]))
    found = stitcher.result()
    assert found.ids.shape == (3, 4, 5)
    np.testing.assert_array_equal(found.ids > 0, box((3, 4, 5), (0, 3), (0, 4), (0, 2)).numpy())
    assert found.labels == (2,)


def line(*views: tuple[int, int, int] | None) -> Instances:
    """Windows of 8 along x, 4 apart; each with one object (label, first, last) in window voxels, or none."""
    windows = Windows((1, 1, 4 + 4 * len(views)), (1, 1, 8), 0.5)
    stitcher = Stitcher(windows, threshold=0.5)
    for place, view in zip(windows.places, views, strict=True):
        empty = [(0, torch.ones(1, 1, 8, dtype=torch.bool))]
        stage = stage_of([(view[0], box((1, 1, 8), (0, 1), (0, 1), view[1:]))] if view else empty)
        stitcher.take([place], HeadOutput([stage]))
    return stitcher.result()


def test_joining_by_hand() -> None:
    whole = line((1, 2, 8), (1, 0, 8), (1, 0, 3))  # voxels 2 … 7, 4 … 11, 8 … 10: chained
    assert whole.labels == (1,)
    assert whole.ids.ravel().tolist() == [0, 0] + [1] * 10 + [0] * 4
    other = line((1, 2, 8), (2, 0, 8))
    assert sorted(other.labels) == [1, 2]
    # One of the four voxels that both see: no partner, and overruled where it lies, so that only a remnant is left.
    assert line((1, 7, 8), (1, 0, 8)).ids.ravel().tolist() == [0] * 4 + [1] * 8
    assert line((1, 4, 8), (1, 2, 4)).ids.ravel().tolist() == [0] * 4 + [1, 1, 2, 2] + [0] * 4  # an IoU of just 0.5
    assert line(None, None).labels == ()


def test_memory_is_what_is_counted() -> None:
    """Of the maps alone: many times more voxels than anything else has."""
    windows, image = Windows((60, 70, 80), (16, 16, 16), 0.5), (90, 100, 60)
    voxels = 60 * 70 * 80
    labels = np.zeros(image, np.uint8)
    labels[20:40, 10:90, 10:50] = labels[60:80, 10:90, 10:50] = 1
    tracemalloc.start()
    try:
        stitcher = Stitcher(windows, threshold=0.5)
        stitcher.ids[12:28, 5:65, 11:69] = 1  # all of the first of the two parts
        stitcher.labels, stitcher.scores, stitcher.sizes, stitcher.parents = [1], [0.9], [1], [0, 1]
        assert tracemalloc.get_traced_memory()[1] == pytest.approx(8 * voxels, rel=0.05)
        seen = stitcher.result()
        assert tracemalloc.get_traced_memory()[1] == pytest.approx(12 * voxels, rel=0.05)
        del stitcher
        found = follow_labels(Instances(nearest(seen.ids, image), seen.labels, seen.scores), labels, (1, 1, 1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sorted(found.scores, key=str) == [0.9, None]
    counted = bytes_needed(windows, image, has_queries=True)
    assert 0.9 * counted < peak <= 1.05 * counted
    assert bytes_needed(windows, image, has_queries=False) == 16 * labels.size
    assert bytes_needed(windows, (9, 9, 9), has_queries=True) == 12 * voxels


def test_scores_are_means_over_windows() -> None:
    windows = Windows((1, 1, 12), (1, 1, 8), 0.5)
    stitcher = Stitcher(windows, threshold=0.5)
    scores = []
    for place, view, certainty in zip(windows.places, ((1, 3, 8), (1, 0, 4)), (3.0, 9.0), strict=True):
        stage = stage_of([(1, box((1, 1, 8), (0, 1), (0, 1), view[1:]))], certainty=certainty)
        scores.append(stage.class_logits.softmax(-1).max().item())  # pyright: ignore
        stitcher.take([place], HeadOutput([stage]))
    assert stitcher.result().scores == (pytest.approx(sum(scores) / 2),)


def test_labels_rule() -> None:
    """Found objects lose what has another label and take what touches them; the rest are components."""
    labels = np.zeros((1, 3, 12), np.uint8)
    labels[0, 0, :8], labels[0, 0, 9:], labels[0, 2, :2] = 1, 2, 1
    ids = np.zeros((1, 3, 12), np.int32)
    ids[0, 0, 1:3], ids[0, 0, 6:10], ids[0, 2, 8:10] = 1, 2, 3  # 2 reaches out of its label, 3 lies outside of any
    found = follow_labels(Instances(ids, (1, 1, 2), (0.9, 0.8, 0.7)), labels, (1, 1, 1))
    assert found.ids[0, 0].tolist() in ([1] * 4 + [2] * 4 + [0] + [4] * 3, [1] * 5 + [2] * 3 + [0] + [4] * 3)
    assert found.ids[0, 1:].ravel().tolist() == [0] * 12 + [3, 3] + [0] * 10
    assert found.labels == (1, 1, 1, 2)
    assert found.scores == (0.9, 0.8, None, None)


@pytest.mark.parametrize(
    ("spacing", "expected"), [((9.0, 1.0, 1.0), [[1] * 4, [2] * 4]), ((1.0, 1.0, 9.0), [[1, 1, 2, 2]] * 2)]
)
def test_nearest_is_in_millimetres(spacing: tuple[float, float, float], expected: list[list[int]]) -> None:
    ids = np.zeros((2, 1, 4), np.int32)
    ids[0, 0, 0], ids[1, 0, 3] = 1, 2
    found = follow_labels(Instances(ids, (1, 1), (None, None)), np.ones((2, 1, 4), np.uint8), spacing)
    assert found.ids[:, 0].tolist() == expected


def test_without_objects_components_come_out() -> None:
    rng = np.random.default_rng(0)
    labels = (ndimage.gaussian_filter(rng.normal(size=(14, 15, 16)), 1.2) > 0.12).astype(np.uint8)
    labels[:, 8:] *= 2
    found = follow_labels(Instances(np.zeros(labels.shape, np.int32), (), ()), labels, (1, 1, 1))
    counts = [ndimage.label(labels == label, np.ones((3, 3, 3)))[1] for label in (1, 2)]
    assert min(counts) >= 2
    assert [found.labels.count(label) for label in (1, 2)] == counts
    assert set(found.scores) == {None}
    for label in (1, 2):
        theirs, _ = ndimage.label(  # pyright: ignore[reportGeneralTypeIssues]
            labels == label, np.ones((3, 3, 3))
        )
        assert same_partition(np.where(labels == label, found.ids, 0), theirs)
    sizes = np.bincount(found.ids.ravel())[1:]
    assert all((sizes[:-1] >= sizes[1:]) | (np.diff(found.labels) > 0))
