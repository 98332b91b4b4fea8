"""Point sampling against scipy's interpolation and Hugging Face's Mask2Former, and against all voxels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from transformers.models.mask2former import modeling_mask2former as mask2former

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.losses import set_criterion
from maskmed_zoo.losses.points import at_points, uncertain_points, uniform_points
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig

CLASSES, QUERIES, IGNORE, SIZE = 3, 5, 3, (4, 8, 6)
CPU = torch.device("cpu")


def example(size=SIZE, batch: int = 2, seed: int = 0) -> tuple[HeadOutput, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    stage = StageOutput(
        masks=(torch.randn(batch, QUERIES, *size, generator=generator) * 3).requires_grad_(),
        class_logits=torch.randn(batch, QUERIES, CLASSES + 1, generator=generator).requires_grad_(),
    )
    return HeadOutput([stage]), torch.randint(0, CLASSES, (batch, *size), generator=generator)


def criterion(ignore_label: int | None = None, **settings) -> SetCriterion:
    return SetCriterion(num_classes=CLASSES, config=SetCriterionConfig(**settings), ignore_label=ignore_label)


def centres(rows: int, size=SIZE) -> Tensor:
    """Points at the centres of all voxels, in their order."""
    axes = [(2 * torch.arange(n) + 1) / n - 1 for n in size]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], -1).view(1, -1, 3).expand(rows, -1, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool])
def test_points_are_read_trilinearly_by_voxel_centres(dtype):
    torch.manual_seed(0)
    volumes = (torch.randn(2, 3, *SIZE) > 0).to(dtype) if dtype == torch.bool else torch.randn(2, 3, *SIZE).to(dtype)
    points = uniform_points(2, 50, CPU)
    found = at_points(volumes, points)
    assert found.dtype == torch.float32
    for m in range(2):
        index = [(points[m, :, 2 - a].double().numpy() + 1) * n / 2 - 0.5 for a, n in enumerate(SIZE)]
        for c in range(3):
            volume = volumes[m, c].double().numpy()
            expected = ndimage.map_coordinates(volume, np.stack(index), order=1, mode="nearest")
            torch.testing.assert_close(found[m, c].double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    assert at_points(volumes, None).data_ptr() == volumes.data_ptr()


def test_uniform_points_hit_an_organ_as_often_as_its_share():
    torch.manual_seed(0)
    organ = torch.zeros(1, 1, 20, 30, 25)
    organ[..., 4:9, 10:14, 3:8] = 1
    points = uniform_points(1, 200_000, CPU)
    assert points.amin() < -0.999
    assert points.amax() > 0.999
    assert float(at_points(organ, points).mean()) == pytest.approx(float(organ.mean()), rel=0.05)


def test_three_quarters_are_the_most_uncertain_of_three_times_as_many():
    logits, ignored = torch.randn(4, 1, *SIZE), torch.rand(4, 1, *SIZE) < 0.1
    torch.manual_seed(1)
    points = uncertain_points(logits, ignored, 40)
    torch.manual_seed(1)
    candidates, rest = uniform_points(4, 120, CPU), uniform_points(4, 10, CPU)
    assert torch.equal(points[:, 30:], rest)
    for m in range(4):
        values = at_points(logits[m : m + 1], candidates[m : m + 1])[0, 0].abs()
        values[at_points(ignored[m : m + 1], candidates[m : m + 1])[0, 0] > 0] = torch.inf
        expected = candidates[m, values.argsort()[:30]]
        assert torch.equal(points[m, :30], expected)
        assert (at_points(ignored[m : m + 1], points[m : m + 1, :30]) == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_equals_hugging_face_on_the_same_points(seed, monkeypatch):
    """Both draw matching points, then candidates, then the uniform rest; here away from the faces of the patch."""
    calls = []

    def draw(*shape, device=None):
        generator = torch.Generator().manual_seed(1000 * seed + len(calls))
        calls.append(shape[:-1])
        inner = 0.1 + 0.8 * torch.empty(*shape[:-1], 2).uniform_(generator=generator)
        return inner if shape[-1] == 2 else torch.nn.functional.pad(inner, (0, 1), value=0.5)

    monkeypatch.setattr(torch, "rand", draw)
    output, labels = example((1, 12, 16), batch=1, seed=seed)
    stage: Any = output.stages[0]
    settings = {"num_labels": CLASSES, "no_object_weight": 0.1, "train_num_points": 50}
    settings |= {"oversample_ratio": 3, "importance_sample_ratio": 0.75}
    settings |= {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0}
    config: Any = SimpleNamespace(**settings)
    theirs = mask2former.Mask2FormerLoss(config, {})(
        stage.masks[:, :, 0],
        stage.class_logits,
        [torch.stack([(labels[0, 0] == k).float() for k in range(CLASSES)])],
        [torch.arange(CLASSES)],
    )
    drawn = calls.copy()
    calls.clear()
    value, parts = criterion(points=50, no_object_weight=0.1, bce_weight=5, dice_weight=5)(output, labels)
    assert calls == drawn == [(1, 50), (3, 150), (3, 13)]
    for ours, name in {"class": "loss_cross_entropy", "bce": "loss_mask", "dice": "loss_dice"}.items():
        torch.testing.assert_close(parts[ours], theirs[name].detach(), rtol=1e-5, atol=1e-6)
    total = 2 * theirs["loss_cross_entropy"] + 5 * theirs["loss_mask"] + 5 * theirs["loss_dice"]
    for x in (stage.masks, stage.class_logits):
        ours, reference = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (value, total))
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "annotated", [None, torch.tensor([[True, False, True], [True, True, False]])], ids=["", "part"]
)
@pytest.mark.parametrize("match", ["once", "per_stage"])
def test_points_at_all_voxel_centres_give_the_dense_loss(match, annotated, monkeypatch):
    output, labels = example()
    labels[:, :1, :3] = IGNORE
    dense, dense_parts = criterion(IGNORE, match=match)(output, labels, annotated=annotated)
    monkeypatch.setattr(set_criterion, "uniform_points", lambda rows, *_: centres(rows))
    monkeypatch.setattr(set_criterion, "uncertain_points", lambda logits, *_: centres(len(logits)))
    value, parts = criterion(IGNORE, match=match, points=4 * 8 * 6 - 1)(output, labels, annotated=annotated)
    torch.testing.assert_close(value, dense)
    torch.testing.assert_close(parts, dense_parts)


def test_a_stage_with_no_more_voxels_than_points_is_taken_whole():
    output, labels = example()
    assert torch.equal(criterion(points=4 * 8 * 6)(output, labels)[0], criterion()(output, labels)[0])
    torch.manual_seed(0)
    few = [criterion(points=4 * 8 * 6 - 1)(output, labels)[0] for _ in range(2)]
    assert not torch.equal(*few)  # drawn anew each time


def test_the_voxels_that_points_read_are_the_only_ones_with_gradient():
    output, labels = example()
    labels[:, :2] = IGNORE
    value, _ = criterion(IGNORE, points=20)(output, labels)
    masks: Any = output.stages[0].masks
    gradient = torch.autograd.grad(value, masks)[0]
    assert (gradient[:, :, :2] == 0).all()
    assert 0 < (gradient != 0).float().mean() < 0.5
