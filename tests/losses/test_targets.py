"""What queries can answer for: labels as one-hot masks, instances against a list made voxel by voxel and scipy."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig
from maskmed_zoo.losses.targets import Targets, instance_targets, label_targets

CLASSES, IGNORE, SIZE = 4, 9, (3, 6, 5)


def example(seed: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Labels, some ignored, and ids: none for some labels, for some on a part of their voxels alone."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (batch, *SIZE), generator=generator)
    ids = torch.randint(0, 4, labels.shape, generator=generator) * 1000
    ids[0][labels[0] == 1] = 0
    ids[1][labels[1] == 2] = 7
    labels[2][labels[2] == 3] = 0
    labels[:, 0, 0] = IGNORE
    return labels, ids


def listed(labels: Tensor, ids: Tensor) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """(label, mask) of every target of a sample in order, the background first, and the ignored voxels."""
    found, ignored = [(0, labels == 0)], labels == IGNORE
    for k in range(1, CLASSES):
        here = labels == k
        own = sorted(set(ids[here].tolist()) - {0})
        if own:
            found += [(k, here & (ids == i)) for i in own]
            ignored = ignored | (here & (ids == 0))
        elif here.any():
            found.append((k, here))
    return found, ignored


def output_for(targets: Tensor, classes: Tensor, scale: float = 20.0) -> HeadOutput:
    """The right answer: masks (b n d h w) bool, classes (b n)."""
    masks = (targets.float() * 2 - 1) * scale
    logits = F.one_hot(classes, CLASSES + 1).float() * scale
    return HeadOutput([StageOutput(masks=masks.requires_grad_(), class_logits=logits.requires_grad_())])


def test_label_targets_are_one_hot_in_the_order_of_the_labels():
    labels, _ = example(0)
    targets = label_targets(labels, CLASSES, IGNORE)
    expected = F.one_hot(labels.where(labels != IGNORE, CLASSES), CLASSES + 1).movedim(-1, 1).bool()
    assert targets.masks.dtype == targets.present.dtype == torch.bool
    assert torch.equal(targets.masks, expected[:, :CLASSES])
    assert targets.ignored is not None
    assert torch.equal(targets.ignored, expected[:, CLASSES:])
    assert targets.classes.tolist() == [[0, 1, 2, 3]] * 3
    assert targets.present.tolist() == [[True] * 4, [True] * 4, [True, True, True, False]]
    assert label_targets(labels, CLASSES, None).ignored is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("ignore_label", [IGNORE, None])
@pytest.mark.parametrize("seed", range(4))
def test_instance_targets_are_those_of_a_list(seed, ignore_label, dtype):
    labels, ids = example(seed)
    ids = ids // 1000 if dtype == torch.uint8 else ids
    targets = instance_targets(labels.to(dtype), ids.to(dtype), CLASSES, ignore_label)
    lists = [listed(labels[b], ids[b]) for b in range(3)]
    assert len({len(found) for found, _ in lists}) > 1  # so that something is padded
    assert targets.masks.shape[1] == max(len(found) for found, _ in lists)
    for b, (found, ignored) in enumerate(lists):
        for t in range(targets.masks.shape[1]):
            label, mask = found[t] if t < len(found) else (0, torch.zeros(SIZE, dtype=torch.bool))
            assert targets.classes[b, t] == label
            assert torch.equal(targets.masks[b, t], mask)
            assert targets.present[b, t] == mask.any()
        assert torch.equal(targets.ignored[b, 0], ignored if ignore_label else ignored & (labels[b] != IGNORE))


def test_target_zero_is_the_background_even_where_there_is_none():
    labels = torch.full((1, 2, 2, 2), 2)
    targets = instance_targets(labels, torch.arange(8).view(1, 2, 2, 2) // 4 + 5, CLASSES, None)
    assert targets.classes.tolist() == [[0, 2, 2]]
    assert targets.present.tolist() == [[False, True, True]]


def test_coarser_targets_are_pooled():
    labels, ids = example(0)
    targets = instance_targets(labels, ids, CLASSES, IGNORE)
    coarse = targets.at((1, 3, 5))
    assert isinstance(coarse, Targets)
    for fine, pooled in ((targets.masks, coarse.masks), (targets.ignored, coarse.ignored)):
        assert fine is not None
        assert pooled is not None
        assert torch.equal(pooled, F.adaptive_max_pool3d(fine.float(), (1, 3, 5)) > 0)
    assert torch.equal(coarse.present, targets.present)


# --- in the criterion


def test_without_ids_instances_change_nothing():
    labels, _ = example(0)
    generator = torch.Generator().manual_seed(1)
    masks, logits = (
        torch.randn(3, 6, *SIZE, generator=generator),
        torch.randn(3, 6, CLASSES + 1, generator=generator),
    )
    output = HeadOutput([StageOutput(masks=masks, class_logits=logits)])
    criterion = SetCriterion(num_classes=CLASSES, ignore_label=IGNORE)
    value, parts = criterion(output, labels)
    same, with_dropped = criterion(output, labels, instances=torch.zeros_like(labels))
    torch.testing.assert_close(same, value)
    assert parts.keys() | {"dropped"} == with_dropped.keys()
    assert with_dropped["dropped"] == 0


def test_every_lesion_has_a_query_of_its_own():
    """Instances by scipy's connected components; the right answer costs nothing, the lesions in one mask do."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(1, 6, 12, 12, generator=generator) < 0.03).long() * 2
    numbered, count = ndimage.label(labels[0].numpy())  # pyright: ignore[reportGeneralTypeIssues]
    assert count > 4
    ids = torch.from_numpy(numbered)[None].long()
    masks = torch.stack([labels[0] == 0, *(ids[0] == i for i in range(1, count + 1))])[None]
    classes = torch.tensor([[0] + [2] * count])
    order = torch.randperm(count + 1, generator=generator)
    criterion = SetCriterion(num_classes=CLASSES)
    right, _ = criterion(output_for(masks[:, order], classes[:, order]), labels, instances=ids)
    assert right < 1e-3
    merged = masks.clone()
    merged[:, 1:] = labels != 0
    wrong, _ = criterion(output_for(merged, classes), labels, instances=ids)
    assert wrong > 1


@pytest.mark.parametrize("match", ["once", "per_stage"])
def test_more_instances_than_queries_are_dropped_and_counted(match):
    labels = torch.ones(2, 2, 4, 4, dtype=torch.int64)
    ids = torch.arange(1, 33).view(1, 2, 4, 4).repeat(2, 1, 1, 1)  # 32 lesions of a voxel
    ids[1, :, 2:] = 1  # and 16
    generator = torch.Generator().manual_seed(0)
    stages = [
        StageOutput(
            masks=torch.randn(2, 5, *size, generator=generator).requires_grad_(),
            class_logits=torch.randn(2, 5, CLASSES + 1, generator=generator).requires_grad_(),
        )
        for size in ((2, 4, 4), (1, 2, 2))
    ]
    criterion = SetCriterion(num_classes=CLASSES, config=SetCriterionConfig(match=match))
    value, parts = criterion(HeadOutput(stages), labels, instances=ids)
    value.backward()
    assert parts["dropped"].dtype == torch.float32
    assert parts["dropped"] == 32 - 5 + 16 - 5
    assert all(x.grad.isfinite().all() and (x.grad != 0).any() for s in stages for x in (s.masks, s.class_logits))


def test_instances_of_a_label_not_looked_for_are_no_targets():
    labels = torch.tensor([1, 1, 2, 2]).view(1, 1, 2, 2)
    ids = torch.tensor([1, 2, 1, 2]).view(1, 1, 2, 2)
    annotated = torch.tensor([[True, True, False, True]])
    targets = SetCriterion(num_classes=CLASSES).targets(labels, annotated, ids)
    assert targets.classes.tolist() == [[0, 1, 1]]
    assert targets.masks.flatten(2).int().tolist() == [[[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]]]


def test_what_does_not_fit_is_refused_in_words():
    labels, ids = example(0)
    with pytest.raises(JointError, match=r"instances \(3, 6, 5\) must have the shape of the labels \(3, 3, 6, 5\)"):
        instance_targets(labels, ids[0], CLASSES, IGNORE)
    fixed = SetCriterion(num_classes=CLASSES, config=SetCriterionConfig(assigner="fixed"))
    with pytest.raises(JointError, match="'assigner: fixed' takes no instances; write 'hungarian'"):
        fixed.check_instances()
    with pytest.raises(JointError, match="takes no instances"):
        fixed(output_for(torch.zeros(3, CLASSES, *SIZE), torch.zeros(3, CLASSES).long()), labels, instances=ids)
    SetCriterion(num_classes=CLASSES).check_instances()
