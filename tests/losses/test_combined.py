"""The combined map of a query head, and the semantic term of `set_criterion`, against float64 and MONAI."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.losses.combined import combined_logits
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig
from maskmed_zoo.losses.stages import nearest_labels
from tests.losses.test_set_criterion import CLASSES, IGNORE, SIZES, criterion, example, gradients


def exact(masks: Tensor, class_logits: Tensor) -> Tensor:
    """(b k d h w) log-probabilities in float64: logsumexp over queries, normalized over labels."""
    classes = class_logits.double().log_softmax(-1)[..., :-1, None, None, None]
    return (classes + F.logsigmoid(masks.double()).unsqueeze(2)).logsumexp(1).log_softmax(1)


@pytest.mark.parametrize("scale", [1, 10, 60])
def test_the_map_is_that_of_float64(scale: float) -> None:
    """Far below the floor of what is predicted, too."""
    torch.manual_seed(0)
    masks, classes = torch.randn(2, 5, 3, 4, 6) * scale - 2 * scale, torch.randn(2, 5, CLASSES + 1) * min(scale, 10)
    found, expected = combined_logits(masks, classes).log_softmax(1), exact(masks, classes)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    predicted = StageOutput(masks=masks, class_logits=classes).log_probabilities()
    if scale == 1:
        torch.testing.assert_close(found, predicted, rtol=1e-3, atol=1e-3)
    else:
        assert expected.min() < -20 < predicted.min()


def test_gradients_are_those_of_float64() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 5, 3, 4, 6) * 15 - 20, torch.randn(2, 5, CLASSES + 1) * 5]
    weights = torch.randn(2, CLASSES, 3, 4, 6)
    found, expected = (
        torch.autograd.grad((way(*leaves) * weights).sum(), leaves)
        for way, leaves in (
            (lambda m, c: combined_logits(m, c).log_softmax(1), [x.clone().requires_grad_() for x in tensors]),
            (exact, [x.clone().requires_grad_() for x in tensors]),
        )
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_is_computed_in_float32(dtype: torch.dtype) -> None:
    masks, classes = (torch.randn(1, 4, 3, 3, 3) * 30).to(dtype), torch.randn(1, 4, CLASSES + 1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = combined_logits(masks, classes)
    assert found.dtype == torch.float32
    assert torch.equal(found, combined_logits(masks.float(), classes.float()))


def naive(output: HeadOutput, labels: Tensor, ignore: int | None, weights: list[float]) -> Tensor:
    """Cross-entropy by PyTorch and Dice by MONAI, over the voxels that count, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, stage in zip(weights, output.stages, strict=True):
        assert stage.masks is not None
        assert stage.class_logits is not None
        log_p, target = exact(stage.masks, stage.class_logits), nearest_labels(labels, stage.masks.shape[2:]).long()
        ce = F.nll_loss(log_p, target, ignore_index=-100 if ignore is None else ignore)
        counts = target.ne(-1 if ignore is None else ignore).unsqueeze(1)
        marks = F.one_hot(target.clamp_max(CLASSES - 1), CLASSES).movedim(-1, 1) * counts
        dice = DiceLoss(include_background=False, smooth_nr=1e-5, smooth_dr=1e-5)(log_p.exp() * counts, marks.double())
        total = total + weight * (ce + dice)
    return total


@pytest.mark.parametrize("settings", [{}, {"assigner": "fixed"}, {"match": "per_stage", "stage_weighting": "equal"}])
@pytest.mark.parametrize("ignore", [None, IGNORE])
def test_the_term_is_cross_entropy_and_dice_of_the_map(settings: dict[str, str], ignore: int | None) -> None:
    output, labels = example()
    if ignore is not None:
        labels[:, 1] = ignore
    plain, loss = criterion(ignore, **settings), criterion(ignore, semantic_weight=3.0, **settings)
    value, parts = loss(output, labels)
    without, parts_without = plain(output, labels)
    expected = naive(output, labels, ignore, loss.stage_weights(len(SIZES)))
    torch.testing.assert_close((value - without).double() / 3, expected, rtol=1e-5, atol=1e-5)
    first = naive(HeadOutput(output.stages[:1]), labels, ignore, [1.0])
    torch.testing.assert_close((parts.pop("ce_combined") + parts.pop("dice_combined")).double(), first)
    assert parts == parts_without
    assert all((x != 0).any() for x in gradients(output, value))  # of every query, matched or not


def test_instances_of_a_label_count_as_one() -> None:
    output, labels = example()
    instances = (labels > 0) * (1 + torch.arange(labels.shape[-1]) // 3)
    sums = [criterion(semantic_weight=w)(output, labels, instances=instances)[0] for w in (0.0, 3.0)]
    expected = naive(output, labels, None, criterion().stage_weights(len(SIZES)))
    torch.testing.assert_close((sums[1] - sums[0]).double() / 3, expected, rtol=1e-5, atol=1e-5)


def test_it_is_not_the_papers() -> None:
    assert SetCriterionConfig().semantic_weight == 0
    output, labels = example()
    loss = SetCriterion(num_classes=CLASSES)
    assert loss(output, labels)[1].keys() == {"class", "bce", "dice"}
    assert loss.counts(output, labels).shape == (3,)
