"""Cross-entropy plus Dice against MONAI in float64, its ignored voxels, and its stages."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.losses.ce_dice import CEDiceConfig, CEDiceLoss

CLASSES, SIZE = 4, (4, 6, 5)


def example(size=SIZE, batch=2, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, CLASSES, *size, generator=generator) * 2
    return logits, torch.randint(0, CLASSES, (batch, *size), generator=generator)


def loss_of(logits, labels, ignore_label=None, **settings):
    criterion = CEDiceLoss(num_classes=CLASSES, config=CEDiceConfig(**settings), ignore_label=ignore_label)
    return criterion(HeadOutput([StageOutput(logits=logits)]), labels)


def monai_loss(logits, labels, ce_weight=1.0, dice_weight=1.0):
    """Dice per case and foreground label with nnU-Net's smoothing, CE over all labels; in float64."""
    criterion = DiceCELoss(
        softmax=True,
        to_onehot_y=True,
        include_background=False,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
        batch=False,
        lambda_ce=ce_weight,
        lambda_dice=dice_weight,
    )
    return criterion(logits.double(), labels[:, None])


@pytest.mark.parametrize(("ce_weight", "dice_weight"), [(1, 1), (1, 0), (0, 1), (0.3, 2)])
def test_equals_monai(ce_weight, dice_weight):
    logits, labels = example()
    labels[0][labels[0] == 2] = 0  # a label that one case lacks
    logits.requires_grad_()
    value, parts = loss_of(logits, labels, ce_weight=ce_weight, dice_weight=dice_weight)
    expected = monai_loss(logits, labels, ce_weight, dice_weight)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    gradient, reference = (torch.autograd.grad(x, logits)[0] for x in (value, expected))
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-8)
    assert float(parts["ce"]) == pytest.approx(monai_loss(logits, labels, 1, 0).item(), rel=1e-6)
    assert float(parts["dice"]) == pytest.approx(monai_loss(logits, labels, 0, 1).item(), rel=1e-6)
    assert not any(part.requires_grad for part in parts.values())


def test_equals_the_formula_written_out_in_float64():
    logits, labels = example()
    labels[:, :1] = CLASSES  # ignored
    value, _ = loss_of(logits, labels, ignore_label=CLASSES)
    p, ce, dice, count = logits.double().softmax(1), 0.0, 0.0, 0
    for b in range(len(labels)):
        valid = labels[b] != CLASSES
        for k in range(CLASSES):
            here = labels[b] == k
            ce -= float(p[b, k][here].log().sum())
            count += int(here.sum())
            if k > 0:
                overlap = float(p[b, k][here].sum())
                size = float(p[b, k][valid].sum()) + int(here.sum())
                dice += (2 * overlap + 1e-5) / (size + 1e-5) / (CLASSES - 1) / len(labels)
    assert float(value) == pytest.approx(ce / count + 1 - dice, rel=1e-6)


@pytest.mark.parametrize("ignore_label", [CLASSES, 255])
def test_ignored_voxels_are_as_good_as_cut_off(ignore_label):
    logits, labels = example()
    expected = monai_loss(logits[:, :, 1:], labels[:, 1:])
    labels[:, :1] = ignore_label
    value, _ = loss_of(logits.requires_grad_(), labels, ignore_label=ignore_label)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    value.backward()
    assert (logits.grad[:, :, :1] == 0).all()
    assert (logits.grad[:, :, 1:] != 0).any()
    changed = logits.detach().clone()
    changed[:, :, :1] = 50 * torch.randn_like(changed[:, :, :1])
    assert torch.equal(loss_of(changed, labels, ignore_label=ignore_label)[0], value.detach())


@pytest.mark.parametrize("content", ["background", "ignored"])
def test_nothing_to_segment_is_finite(content):
    logits, labels = example()
    labels.fill_(0 if content == "background" else CLASSES)
    value, _ = loss_of(logits.requires_grad_(), labels, ignore_label=CLASSES)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    if content == "ignored":
        assert (logits.grad == 0).all()


def test_a_perfect_answer_costs_nothing():
    _, labels = example()
    logits = torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1) * 100.0
    assert float(loss_of(logits, labels)[0]) == pytest.approx(0, abs=1e-6)


def test_stages_are_weighted_and_take_the_nearest_labels():
    logits, labels = example((4, 4, 4))
    stages = [logits, example((2, 2, 4), seed=1)[0], example((1, 1, 2), seed=2)[0]]
    coarse = [labels, labels[:, 1::2, 1::2], labels[:, 2::4, 2::4, 1::2]]
    output = HeadOutput([StageOutput(logits=x) for x in stages])
    single = [float(loss_of(x, y)[0]) for x, y in zip(stages, coarse, strict=True)]
    for supervise_lowest, weights in ((False, (2 / 3, 1 / 3, 0)), (True, (4 / 7, 2 / 7, 1 / 7))):
        criterion = CEDiceLoss(num_classes=CLASSES, config=CEDiceConfig(supervise_lowest=supervise_lowest))
        assert criterion.stage_weights(3) == pytest.approx(weights)
        value, parts = criterion(output, labels)
        assert float(value) == pytest.approx(sum(w * s for w, s in zip(weights, single, strict=True)), rel=1e-6)
        assert float(parts["ce"] + parts["dice"]) == pytest.approx(single[0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_summed_in_float32(dtype):
    """96 · 48 · 48 voxels: a sum of cross-entropies, or of probabilities, overflows float16."""
    torch.manual_seed(0)
    logits = torch.randn(1, CLASSES, 96, 48, 48).to(dtype)
    labels = torch.zeros(1, 96, 48, 48, dtype=torch.uint8)
    labels[:, 10:80, 10:40, 10:40] = 1
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = loss_of(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), monai_loss(logits, labels.long()), rtol=1e-4, atol=1e-5)


def test_no_output_of_a_network() -> None:
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    for output in (torch.zeros(1, 2, 4, 4, 4), None, labels):
        with pytest.raises(JointError, match="expected the HeadOutput of a network"):
            CEDiceLoss(num_classes=2)(output, labels)  # pyright: ignore[reportArgumentType]


def test_labels_that_are_whole_but_for_rounding() -> None:
    output = HeadOutput([StageOutput(logits=torch.randn(1, 2, 4, 4, 4))])
    labels = torch.randint(0, 2, (1, 4, 4, 4))
    rounded = labels * (1 - 1e-6)
    assert CEDiceLoss(num_classes=2)(output, rounded)[0] == CEDiceLoss(num_classes=2)(output, labels)[0]
    with pytest.raises(JointError, match="not whole"):
        CEDiceLoss(num_classes=2)(output, labels * 0.99)
