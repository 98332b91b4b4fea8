"""Surface distances: against surface-distance, MONAI and SciPy, and on shapes whose distances are known."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from skimage.measure import marching_cubes

import maskmed_zoo as zoo
from maskmed_zoo.evaluation import surfaces
from maskmed_zoo.evaluation.case import LabelMapPair, score_case
from maskmed_zoo.evaluation.metrics import chosen, metrics
from maskmed_zoo.metric_settings import MetricSettings
from tests.conftest import write_nifti
from tests.evaluation.metrics.shapes import LABELS, ball, pair_of, random_pairs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for names that SciPy has moved
    import surface_distance

DISTANCES = ("hd", "hd95", "assd", "masd")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning"),  # of surface-distance
    pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning"),  # MONAI calls it so itself
]


def scores(pair: LabelMapPair, *names: str) -> dict[str, Any]:
    scored = score_case(pair, chosen(names)).scores
    return {name: scored[name].values["label"] for name in names}


def masks(pair: LabelMapPair) -> tuple[np.ndarray, np.ndarray]:
    return pair.prediction == 1, pair.reference == 1


@pytest.mark.parametrize("chunk", [1, 300, 2**21])
def test_equals_surface_distance(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "CHUNK_VOXELS", chunk)
    for number, made in enumerate(random_pairs(12, seed=chunk)):
        tolerance = 0.3 + 0.41 * number
        pair = replace(made, settings=MetricSettings(tolerance=tolerance))
        ours, theirs = masks(pair)
        expected: dict[str, Any] = surface_distance.compute_surface_distances(theirs, ours, pair.spacing)
        found = pair.surfaces("label")
        for mine, name in (
            (found.between_corners.prediction, "pred_to_gt"),
            (found.between_corners.reference, "gt_to_pred"),
        ):
            assert np.sort(mine) == pytest.approx(expected[f"distances_{name}"], abs=1e-9)
        assert found.areas.prediction.sum() == pytest.approx(expected["surfel_areas_pred"].sum())
        assert scores(pair, "nsd", "hd", "hd95") == {
            "nsd": pytest.approx(surface_distance.compute_surface_dice_at_tolerance(expected, tolerance), abs=1e-9),
            "hd": pytest.approx(surface_distance.compute_robust_hausdorff(expected, 100), abs=1e-9),
            "hd95": pytest.approx(surface_distance.compute_robust_hausdorff(expected, 95), abs=1e-9),
        }
        average = surface_distance.compute_average_surface_distance(expected)  # between corners, not centres of patches
        assert scores(pair, "masd")["masd"] == pytest.approx(
            np.mean(average), abs=float(np.linalg.norm(pair.spacing)) / 2
        )


def test_equals_monai() -> None:
    """Its surface Dice with sub-voxels is of the same elements; its distances are between voxels of the boundary."""
    for pair in random_pairs(8, seed=5):
        ours, theirs = (torch.from_numpy(mask)[None, None].float() for mask in masks(pair))
        both = torch.cat([1 - ours, ours], 1), torch.cat([1 - theirs, theirs], 1)
        options: dict[str, Any] = {"spacing": [*pair.spacing]}
        nsd = compute_surface_dice(*both, class_thresholds=[2.0], use_subvoxels=True, **options)
        assert scores(pair, "nsd")["nsd"] == pytest.approx(nsd.item(), abs=1e-6)
        voxel = float(np.linalg.norm(pair.spacing))
        assert scores(pair, "hd")["hd"] == pytest.approx(compute_hausdorff_distance(*both, **options).item(), abs=voxel)


def test_hausdorff_distance_of_scipy_between_boundary_voxels() -> None:
    """Of two balls, between boundary voxels by SciPy: the same to a voxel's diagonal."""
    spacing = (2.0, 1.0, 0.7)
    reference = ball((30, 50, 70), 15, spacing)
    prediction = np.roll(ball((30, 50, 70), 12, spacing), 9, 2)
    edges = [mask & np.logical_not(binary_erosion(mask)) for mask in (prediction, reference)]
    away = [np.asarray(distance_transform_edt(np.logical_not(edge), sampling=spacing)) for edge in edges]
    expected = max(away[1 - side][edges[side]].max() for side in (0, 1))
    found = scores(pair_of(prediction, reference, spacing), "hd", "hd95")
    assert found["hd"] == pytest.approx(expected, abs=float(np.linalg.norm(spacing)) / 2)
    assert 6 < found["hd95"] < found["hd"]  # the far side is 3 + 6.3 mm away


@pytest.mark.parametrize(
    ("spacing", "inner", "outer", "tolerance"),
    [((1.0, 1.0, 1.0), 20, 40, 0.01), ((0.5, 0.5, 0.5), 5, 15, 0.01), ((2.0, 1.0, 1.0), 20, 24, 0.05)],
)
def test_concentric_spheres(spacing, inner: float, outer: float, tolerance: float) -> None:
    """The distance is the difference of the radii, everywhere; `tolerance` is relative."""
    shape = tuple(round(2 * outer / mm) + 4 for mm in spacing)
    pair = pair_of(ball(shape, inner, spacing), ball(shape, outer, spacing), spacing)
    gap = outer - inner
    found = scores(pair, *DISTANCES)
    assert found["assd"] == pytest.approx(gap, rel=tolerance)
    assert found["masd"] == pytest.approx(gap, rel=tolerance)
    assert found["hd95"] == pytest.approx(gap, abs=max(spacing))
    assert found["hd"] == pytest.approx(gap, abs=1.5 * max(spacing))
    areas = pair.surfaces("label").areas
    assert areas.prediction.sum() == pytest.approx(4 * np.pi * inner**2, rel=0.13)  # of cut corners, 9 to 12 % too much


def test_boxes() -> None:
    """A box in a larger one: its faces 2, 3 and 4 mm away, its area that of a box with chamfered edges."""
    spacing = (2.0, 1.0, 0.5)
    reference = np.zeros((20, 40, 60), bool)
    reference[2:18, 3:37, 4:56] = True
    prediction = np.zeros_like(reference)
    prediction[3:17, 6:34, 12:48] = True
    pair = pair_of(prediction, reference, spacing)
    found = scores(pair, *DISTANCES, "nsd")
    size = np.array([14 * 2.0, 28, 18])
    faces = np.array([size[1] * size[2], size[0] * size[2], size[0] * size[1]])
    assert pair.surfaces("label").areas.prediction.sum() == pytest.approx(2 * faces.sum(), rel=0.03)
    distances = pair.surfaces("label").between_patches.prediction
    there = pair.surfaces("label").areas.prediction
    assert distances @ there / there.sum() == pytest.approx((faces @ [2, 3, 4]) / faces.sum(), rel=0.02)
    assert found["hd"] == pytest.approx(np.linalg.norm([2, 3, 4]), abs=1.0)  # from corner to corner
    assert found["nsd"] < 0.4  # the faces 2 mm away


def test_a_shifted_box_has_no_distance_along_its_sides() -> None:
    """Half of a cube's six faces slide along themselves: with the two that move by 3, ASSD is about 3 x 2/6."""
    reference = np.zeros((50, 50, 50), bool)
    reference[5:45, 5:45, 5:42] = True
    pair = pair_of(np.roll(reference, 3, 2), reference)
    found = scores(pair, *DISTANCES)
    assert found["hd"] == found["hd95"] == 3
    assert found["assd"] == pytest.approx(3 * 2 * 40**2 / (2 * 40**2 + 4 * 40 * 37), rel=0.06)
    assert found["masd"] == pytest.approx(found["assd"])


def test_averages_are_those_of_meshes() -> None:
    """Of scikit-image's meshes of the same masks, whose triangles are sampled densely; within a sixth of a voxel."""
    rng = np.random.default_rng(3)
    parts = rng.dirichlet([1, 1, 1], 12)
    seen = 0
    for pair in random_pairs(12, seed=4):
        if min(pair.voxels["label"].prediction, pair.voxels["label"].reference) < 200:
            continue
        seen += 1
        points: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        for mask in masks(pair):
            corners, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=pair.spacing)
            triangles = corners[faces]
            areas = np.linalg.norm(
                np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1
            )
            points.append(np.einsum("pc,tcd->tpd", parts, triangles).reshape(-1, 3))
            weights.append(np.repeat(areas, len(parts)))
        averages = [
            np.average(KDTree(points[1 - side]).query(points[side])[0], weights=weights[side]) for side in (0, 1)
        ]
        assert scores(pair, "masd")["masd"] == pytest.approx(np.mean(averages), abs=max(pair.spacing) / 6)
    assert seen >= 3


def test_only_the_spacing_of_an_oblique_image_matters_and_border_labels_are_closed() -> None:
    reference = np.zeros((6, 7, 8), bool)
    reference[:3, :, 2:] = True
    inside = np.pad(reference, 3)
    spacing = (2.5, 1.0, 0.8)
    names = (*DISTANCES, "nsd")
    at_border = scores(pair_of(np.roll(reference, 1, 2) & reference, reference, spacing), *names)
    within = scores(pair_of(np.pad(np.roll(reference, 1, 2) & reference, 3), inside, spacing), *names)
    assert at_border == pytest.approx(within)
    ours, theirs = (side.transpose(2, 0, 1)[::-1] for side in (np.roll(reference, 1, 2) & reference, reference))
    turned = pair_of(ours, theirs, (spacing[2], spacing[0], spacing[1]))
    assert scores(turned, *names) == pytest.approx(within)


def test_an_oblique_image_file_is_scored_as_a_straight_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    reference = gaussian_filter(rng.normal(size=(14, 16, 9)), 2) > 0
    prediction = np.roll(reference, 1, 0)
    turn = Rotation.from_euler("xyz", [25, -15, 40], degrees=True).as_matrix()
    found = []
    for name, directions in (("straight", np.eye(3)), ("oblique", turn)):
        affine = np.eye(4)
        affine[:3, :3] = directions * (0.8, 1.1, 3.0)
        affine[:3, 3] = (5, -70, 12)
        for side, mask in (("pred", prediction), ("ref", reference)):
            write_nifti(tmp_path / name / side / "a.nii.gz", mask.astype(np.uint8), affine)
        summary = zoo.evaluate(pred=tmp_path / name / "pred", ref=tmp_path / name / "ref", metrics=[*DISTANCES, "nsd"])
        found.append({key: table[f"mean_{key}"] for key, table in summary["metrics"].items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # headers hold 32 bits
    expected = scores(pair_of(prediction.T, reference.T, (3.0, 1.1, 0.8)), *DISTANCES, "nsd")
    assert found[0] == pytest.approx(expected, rel=1e-5)


def test_single_voxels() -> None:
    reference, prediction = np.zeros((2, 5, 9, 9), bool)
    reference[2, 2, 2] = prediction[2, 2, 5] = True
    found = scores(pair_of(prediction, reference, (3.0, 1.0, 2.0)), *DISTANCES, "nsd")
    assert found["hd"] == found["hd95"] == 6  # the far corners
    assert 4 < found["assd"] < 6
    assert found["masd"] == pytest.approx(found["assd"])
    assert found["nsd"] == 0
    same = scores(pair_of(reference, reference, (3.0, 1.0, 2.0)), *DISTANCES, "nsd")
    assert same == {"hd": 0, "hd95": 0, "assd": 0, "masd": 0, "nsd": 1}


def test_absent_missed_and_false_labels_have_the_worst_value() -> None:
    there, nothing = np.zeros((2, 6, 8, 10), bool)
    there[2:4, 2:5, 3:7] = True
    diagonal = float(np.linalg.norm([6 * 2.0, 8, 10 * 0.5]))
    names = [name for name, metric in metrics().items() if metric.one_absent is not None]
    assert {*DISTANCES, "nsd", "iou", "precision", "recall", "cldice", "boundary_iou", "dice"} <= set(names)
    for prediction, reference in ((nothing, there), (there, nothing)):
        found = scores(pair_of(prediction, reference, (2.0, 1.0, 0.5)), *names)
        worst = {name: diagonal if name in DISTANCES else 0.0 for name in names}
        assert {name: found[name] for name in names} == worst | {"relative_volume_difference": 100.0}
    absent = scores(pair_of(nothing, nothing), *names)
    assert set(absent.values()) == {None}


def test_ignored_voxels_are_on_no_side() -> None:
    """What is predicted there makes no surface: as if it had not been predicted."""
    labels = type(LABELS)({**LABELS, "ignore": 2})
    reference = np.zeros((8, 12, 12), np.uint8)
    reference[2:6, 3:9, 3:9], reference[:, :, 9:] = 1, 2
    prediction = np.zeros_like(reference)
    prediction[2:6, 3:9, 4:] = 1
    pair = LabelMapPair("a", prediction, reference, labels, frozenset(["label"]), (1.0, 1.0, 1.0))
    cut = pair_of((prediction == 1) & (reference != 2), reference == 1)
    for name in (name for name, metric in metrics().items() if not metric.from_probabilities):
        assert scores(pair, name) == pytest.approx(scores(cut, name)), name


def test_tolerance_by_label() -> None:
    arrays = np.zeros((2, 6, 6, 12), np.uint8)
    arrays[:, 1:5, 1:5, 1:4] = 1
    arrays[1, 1:5, 1:5, 7:10] = 2
    arrays[0, 1:5, 1:5, 8:11] = 2
    arrays[0, 1:5, 1:5, 1] = 0
    labels = type(LABELS)({"background": 0, "liver": 1, "vein": 2})
    values = []
    for tolerance in (0.5, 1.0, {"vein": 0.5}, {"vein": 0.5, "liver": 0.5}):
        settings = MetricSettings(tolerance=tolerance)
        pair = replace(
            pair_of(arrays[0], arrays[1]), labels=labels, annotated=frozenset(labels.foreground), settings=settings
        )
        values.append(score_case(pair, chosen(["nsd"])).scores["nsd"].values)
    strict, loose, some, both = values
    assert loose == {"liver": 1, "vein": 1}
    assert max(strict.values()) < 0.9
    assert some == {"liver": 1, "vein": strict["vein"]}
    assert both == strict
    rules = metrics()["nsd"].rules
    assert "the tolerance is 2 mm" in rules()
    assert "the tolerance is 0.5 mm" in rules(MetricSettings(tolerance=0.5))
    assert "0.5 mm for vein, 2 mm for any other" in rules(MetricSettings(tolerance={"vein": 0.5}))
