"""`absent: empty`: the masks of labels that are annotated and not in a patch, against the loss without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig
from tests.losses.test_set_criterion import mask_terms
from tests.losses.test_set_criterion import pool as pooled

CLASSES, QUERIES, IGNORE = 4, 6, 4
SIZES = [(2, 6, 4), (1, 3, 2)]
PART = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]).bool()
ABSENT = {(0, 3), (1, 0), (2, 2)}
"""Sample and label; label 2 of sample 0 and label 1 of sample 2 are not annotated, sample 3 is ignored as a whole."""


def example() -> tuple[HeadOutput, Tensor]:
    generator = torch.Generator().manual_seed(0)
    stages = [
        StageOutput(
            masks=(torch.randn(4, QUERIES, *size, generator=generator) * 2).requires_grad_(),
            class_logits=torch.randn(4, QUERIES, CLASSES + 1, generator=generator).requires_grad_(),
        )
        for size in SIZES
    ]
    labels = torch.randint(0, CLASSES, (4, *SIZES[0]), generator=generator)
    for sample, label in ABSENT:
        labels[sample][labels[sample] == label] = 1
    labels[:, 0, 0, :2] = IGNORE
    labels[3] = IGNORE
    return HeadOutput(stages), labels


def loss(absent: str, **settings: float) -> SetCriterion:
    config = SetCriterionConfig.model_validate({"assigner": "fixed", "absent": absent} | settings)
    return SetCriterion(num_classes=CLASSES, config=config, ignore_label=IGNORE)


@pytest.mark.parametrize("annotated", [PART, None])
def test_masks_of_absent_labels_have_an_empty_target(annotated: Tensor | None) -> None:
    output, labels = example()
    free, empty = (loss(x)(output, labels, annotated=annotated) for x in ("free", "empty"))
    masks = output.stages[0].masks
    assert masks is not None
    extra = torch.stack([
        torch.stack(mask_terms(masks[b, k], torch.zeros(SIZES[0]).double(), 1 - pooled(labels[b] == IGNORE, SIZES[0])))
        for b, k in sorted(ABSENT)
    ]).sum(0)  # fmt: skip
    annotated_there = torch.ones(4, CLASSES).bool() if annotated is None else annotated
    matched = int(annotated_there[:3].sum()) - len(ABSENT)
    for name, more in zip(("bce", "dice"), extra, strict=True):
        due = (free[1][name] * matched + more) / (matched + len(ABSENT))
        torch.testing.assert_close(empty[1][name].double(), due, rtol=1e-5, atol=1e-6)
    assert torch.equal(free[1]["class"], empty[1]["class"])
    for stage in output.stages:
        assert stage.masks is not None
        (grad,) = torch.autograd.grad(empty[0], stage.masks, retain_graph=True)
        due = torch.zeros(4, QUERIES).bool()
        due[:3, :CLASSES] = annotated_there[:3]
        assert torch.equal(grad.flatten(2).abs().amax(-1) > 0, due)
        for sample, label in ABSENT:
            assert grad[sample, label].min() >= 0, "pushed down"


@pytest.mark.parametrize("absent", ["free", "empty"])
def test_pieces_add_up_to_the_whole(absent: str) -> None:
    output, labels = example()
    criterion = loss(absent, semantic_weight=3.0, no_object_weight=0.3)
    pieces = [
        (HeadOutput([StageOutput(masks=s.masks[at], class_logits=s.class_logits[at]) for s in output.stages]), at)  # pyright: ignore
        for at in (slice(0, 2), slice(2, 4))
    ]
    counts = torch.stack([criterion.counts(o, labels[at], annotated=PART[at]) for o, at in pieces]).sum(0)
    shares = [criterion(o, labels[at], annotated=PART[at], counts=counts)[0] for o, at in pieces]
    torch.testing.assert_close(sum(shares), criterion(output, labels, annotated=PART)[0])


def test_only_with_fixed_assignment() -> None:
    with pytest.raises(ValueError, match="'absent: empty' needs 'assigner: fixed'"):
        SetCriterionConfig(absent="empty")
