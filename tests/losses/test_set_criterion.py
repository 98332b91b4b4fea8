"""The set criterion against a naive float64 reference and Hugging Face's Mask2Former loss, and its edge cases.

Hugging Face's loss samples points (replaced by every voxel here, see test_points), has no ignore label, and sums over
outputs where ours averages. See test_partial for partial labels and test_targets for instances.
"""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former import modeling_mask2former as mask2former

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.losses import set_criterion
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig

CLASSES, QUERIES, IGNORE = 3, 5, 3
SIZES = [(4, 8, 6), (2, 4, 3), (1, 2, 3)]


def criterion(ignore_label: int | None = None, **settings) -> SetCriterion:
    return SetCriterion(num_classes=CLASSES, config=SetCriterionConfig(**settings), ignore_label=ignore_label)


def example(seed: int = 0, sizes=SIZES, batch: int = 2, queries: int = QUERIES) -> tuple[HeadOutput, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    stages = [
        StageOutput(
            masks=(torch.randn(batch, queries, *size, generator=generator) * 3).requires_grad_(),
            class_logits=torch.randn(batch, queries, CLASSES + 1, generator=generator).requires_grad_(),
        )
        for size in sizes
    ]
    return HeadOutput(stages), torch.randint(0, CLASSES, (batch, *sizes[0]), generator=generator)


def assign(loss: SetCriterion, output: HeadOutput, labels: Tensor) -> list[Tensor]:
    """The assignment (b n) of every stage."""
    full = loss.targets(labels)
    targets = [full.at(stage.spatial.shape[2:]) for stage in output.stages]
    return [pairs.assignment for pairs in loss.assign(output.stages, targets)]


def gradients(output: HeadOutput, value: Tensor) -> list[Tensor]:
    leaves: list[Any] = [t for stage in output.stages for t in (stage.masks, stage.class_logits)]
    return list(torch.autograd.grad(value, leaves))


# --- a reference written for reading only


def pool(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """1 where any voxel of the block is; sizes divide."""
    blocks = [n // m for n, m in zip(mask.shape, size, strict=True)]
    out = torch.zeros(size, dtype=torch.float64)
    for z, y, x in mask.nonzero().tolist():
        out[z // blocks[0], y // blocks[1], x // blocks[2]] = 1
    return out


def mask_terms(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    p, m = logits.double().sigmoid()[valid > 0], target[valid > 0]
    bce = -(m * p.log() + (1 - m) * (1 - p).log()).sum() / max(1, len(m))
    return bce, 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)


def matched(stage: StageOutput, labels: Tensor, b: int, settings: SetCriterionConfig, ignore: int) -> list:
    """(query, label) pairs of a sample: the cheapest of all."""
    weights, size = (settings.class_weight, settings.bce_weight, settings.dice_weight), stage.masks.shape[2:]
    valid = 1 - pool(labels == ignore, size)
    targets = [k for k in range(CLASSES) if (labels == k).any()]
    if settings.assigner == "fixed":
        return list(zip(targets, targets, strict=True))
    costs = torch.zeros(QUERIES, CLASSES, dtype=torch.float64)
    for q in range(QUERIES):
        for k in targets:
            bce, dice = mask_terms(stage.masks[b, q], pool(labels == k, size), valid)
            score = stage.class_logits[b, q].double().softmax(-1)[k]
            costs[q, k] = (-weights[0] * score + weights[1] * bce + weights[2] * dice).detach()
    best = min(
        permutations(range(QUERIES), len(targets)),
        key=lambda qs: sum(costs[q, k] for q, k in zip(qs, targets, strict=True)),
    )
    return list(zip(best, targets, strict=True))


def reference(output: HeadOutput, labels: Tensor, settings: SetCriterionConfig, ignore: int | None) -> Tensor:
    batch, weights = len(labels), (settings.class_weight, settings.bce_weight, settings.dice_weight)
    ignore = -1 if ignore is None else ignore
    total, pairs = torch.zeros((), dtype=torch.float64), []
    for index, stage in enumerate(output.stages):
        if index == 0 or settings.match == "per_stage":
            pairs = [matched(stage, labels[b], b, settings, ignore) for b in range(batch)]
        share = 0.5**index / sum(0.5**i for i in range(len(output.stages)))
        if settings.stage_weighting == "equal":
            share = 1 / len(output.stages)
        size, class_sum, class_norm, bces, dices = stage.masks.shape[2:], 0.0, 0.0, [], []
        for b in range(batch):
            label_of = dict(pairs[b])
            for q in range(QUERIES):
                k = label_of.get(q, CLASSES)
                weight = settings.no_object_weight if k == CLASSES else 1.0
                class_sum = class_sum - weight * stage.class_logits[b, q].double().log_softmax(-1)[k]
                class_norm += weight
            valid = 1 - pool(labels[b] == ignore, size)
            for q, k in pairs[b]:
                bce, dice = mask_terms(stage.masks[b, q], pool(labels[b] == k, size), valid)
                bces.append(bce)
                dices.append(dice)
        means = [sum(x) / len(x) for x in (bces, dices)] if bces else [0.0, 0.0]
        total = total + share * (weights[0] * class_sum / class_norm + weights[1] * means[0] + weights[2] * means[1])
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"assigner": "fixed"},
        {"no_object_weight": 0.1},
        {"class_weight": 1.0, "bce_weight": 0.0},
        {"bce_weight": 3.0, "dice_weight": 0.0},
        {"match": "per_stage"},
        {"match": "per_stage", "stage_weighting": "equal"},
    ],
    ids=str,
)
@pytest.mark.parametrize("ignore", [None, IGNORE])
def test_equals_the_naive_reference(seed, settings, ignore):
    output, labels = example(seed)
    labels[1][labels[1] == 1] = 0  # absent from one patch
    if ignore is not None:
        labels[0, :2, :3, :] = ignore
    loss = criterion(ignore, **settings)
    value, _ = loss(output, labels)
    expected = reference(output, labels, loss.config, ignore)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients(output, value), gradients(output, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("no_object_weight", [1.0, 0.1])
@pytest.mark.parametrize("outputs", [1, 3])
def test_equals_hugging_face(no_object_weight, outputs, monkeypatch):
    """Outputs of one resolution, each matched anew."""
    monkeypatch.setattr(mask2former, "sample_point", lambda features, *_, **__: features.flatten(2))
    output, labels = example(sizes=[(1, 6, 10)] * outputs)
    labels[1][labels[1] == 2] = 0
    present = [[k for k in range(CLASSES) if (labels[b] == k).any()] for b in range(2)]
    settings = {"num_labels": CLASSES, "no_object_weight": no_object_weight, "train_num_points": 60}
    settings |= {"oversample_ratio": 1, "importance_sample_ratio": 0.5}
    settings |= {"class_weight": 2.0, "mask_weight": 10.0, "dice_weight": 10.0}
    first, *others = [
        {"masks_queries_logits": stage.masks[:, :, 0], "class_queries_logits": stage.class_logits}
        for stage in output.stages
    ]
    config: Any = SimpleNamespace(**settings)
    theirs = mask2former.Mask2FormerLoss(config, {})(
        **first,
        mask_labels=[torch.stack([(labels[b, 0] == k).float() for k in present[b]]) for b in range(2)],
        class_labels=[torch.tensor(x) for x in present],
        auxiliary_predictions=others,
    )
    loss = criterion(no_object_weight=no_object_weight, match="per_stage", stage_weighting="equal")
    value, parts = loss(output, labels)
    names = {"class": "loss_cross_entropy", "bce": "loss_mask", "dice": "loss_dice"}
    for ours, name in names.items():
        torch.testing.assert_close(parts[ours], theirs[name].detach())
    assert len(theirs) == 3 * outputs
    total = sum(x * (2 if "cross_entropy" in name else 10) for name, x in theirs.items())
    torch.testing.assert_close(value, total / outputs)
    for ours, reference in zip(gradients(output, value), gradients(output, total / outputs), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-8)


# --- what is matched


def test_one_assignment_on_the_full_resolution_output_serves_all_or_each_has_its_own():
    output, labels = example()
    once, per_stage = (assign(criterion(match=match), output, labels) for match in ("once", "per_stage"))
    assert len(once) == len(per_stage) == len(SIZES)
    assert all(torch.equal(x, once[0]) for x in once)
    assert torch.equal(per_stage[0], once[0])
    for i in (1, 2):
        alone = HeadOutput([output.stages[i]])
        coarse = criterion().targets(labels).at(SIZES[i])
        assert torch.equal(per_stage[i], criterion().assign(alone.stages, [coarse])[0].assignment)
        assert not torch.equal(per_stage[i], once[0])


def test_gradient_reaches_matched_masks_only():
    output, labels = example()
    loss = criterion()
    labels[0][labels[0] == 2] = 1
    assignment = assign(loss, output, labels)[0]
    assert sorted(assignment[0].tolist()) == [-1, -1, -1, 0, 1]
    assert sorted(assignment[1].tolist()) == [-1, -1, 0, 1, 2]
    for masks, classes in zip(*[iter(gradients(output, loss(output, labels)[0]))] * 2, strict=True):
        assert torch.equal(masks.flatten(2).abs().amax(-1) > 0, assignment >= 0)
        assert (classes != 0).all()  # every query has a class target, "no object" among them


def test_the_class_target_of_an_unmatched_query_is_no_object():
    output, labels = example()
    labels[:] = 1
    loss = criterion(bce_weight=0, dice_weight=0)
    gradient = gradients(output, loss(output, labels)[0])[1]
    assert ((gradient < 0).sum(-1) == 1).all()  # cross-entropy pulls up the target alone
    assert sorted(gradient[0].argmin(-1).tolist()) == [1, 3, 3, 3, 3]


def test_the_fixed_assigner_needs_no_costs():
    output, labels = example()
    labels[labels == 1] = 0
    with torch.no_grad():
        output.stages[0].masks[:, 4] = 30 * torch.randn(2, *SIZES[0])
    assert assign(criterion(assigner="fixed"), output, labels)[0].tolist() == [[0, -1, 2, -1, -1]] * 2


def test_what_fixed_makes_meaningless_is_refused():
    with pytest.raises(ValueError, match="'match: per_stage' needs 'assigner: hungarian'"):
        SetCriterionConfig(assigner="fixed", match="per_stage")


def test_more_weight_on_no_object_changes_the_class_term_alone():
    output, labels = example()
    parts = [criterion(no_object_weight=w)(output, labels)[1] for w in (1.0, 0.1)]
    assert parts[0]["class"] != parts[1]["class"]
    assert all(torch.equal(parts[0][name], parts[1][name]) for name in ("bce", "dice"))


# --- ignored voxels, empty patches, tiny organs


def test_ignored_voxels_have_no_influence():
    output, labels = example()
    labels[:, :2] = IGNORE  # whole blocks of every stage but the last
    labels[:, 2, :4, :2] = IGNORE
    loss = criterion(IGNORE)
    value, parts = loss(output, labels)
    ignored = [F.adaptive_max_pool3d((labels == IGNORE).float(), size) > 0 for size in SIZES]
    found = gradients(output, value)[::2]
    for mask, gradient in zip(ignored, found, strict=True):
        assert (gradient.movedim(1, -1)[mask] == 0).all()
        assert mask.all() or (gradient != 0).any()
    with torch.no_grad():
        for stage, mask in zip(output.stages, ignored, strict=True):
            stage.masks.movedim(1, -1)[mask] = 40 * torch.randn(int(mask.sum()), QUERIES)
    again, parts_again = loss(output, labels)
    assert torch.equal(value, again)
    assert all(torch.equal(parts[name], parts_again[name]) for name in parts)


def test_a_label_present_under_the_ignore_label_only_is_absent():
    output, labels = example()
    labels[labels == 2] = IGNORE
    assignment = assign(criterion(IGNORE), output, labels)[0]
    assert sorted(assignment[0].tolist()) == [-1, -1, -1, 0, 1]
    assert (assign(criterion(IGNORE), output, torch.full_like(labels, IGNORE))[0] == -1).all()


@pytest.mark.parametrize("no_object_weight", [1.0, 0.0])
@pytest.mark.parametrize("settings", [{}, {"assigner": "fixed"}, {"match": "per_stage"}, {"points": 20}], ids=str)
@pytest.mark.parametrize("content", [0, IGNORE], ids=["background only", "everything ignored"])
def test_nothing_to_segment_is_finite(content, settings, no_object_weight):
    output, labels = example()
    labels.fill_(content)
    value, parts = criterion(IGNORE, no_object_weight=no_object_weight, **settings)(output, labels)
    found = gradients(output, value)
    assert all(g.isfinite().all() for g in found)
    if content == IGNORE:
        assert parts["bce"] == parts["dice"] == 0
        assert all((g == 0).all() for g in found)
    else:
        assert all((g != 0).any() for g in found[::2])


def test_an_organ_of_one_voxel_is_a_target_at_every_stage():
    sizes = [(16, 16, 32), (8, 8, 16), (4, 4, 8), (2, 2, 4), (1, 1, 2), (1, 1, 1)]
    output, labels = example(sizes=sizes, batch=1)
    labels.zero_()
    labels[0, 15, 0, 16] = 2
    found = gradients(output, criterion(assigner="fixed")(output, labels)[0])[::2]
    for gradient, size in zip(found, sizes, strict=True):
        pulled_up = (gradient[0, 2] < 0).nonzero()
        assert pulled_up.tolist() == [[15 * size[0] // 16, 0, 16 * size[2] // 32]]


def test_half_precision_masks_of_an_ignored_patch_give_no_nan():
    """A sum over them is infinite in float16, and 0 times that is NaN."""
    output, labels = example(sizes=[(8, 16, 16)])
    masks = torch.full((2, QUERIES, 8, 16, 16), 60000.0, dtype=torch.float16, requires_grad=True)
    output.stages[0].masks = masks
    value, _ = criterion(IGNORE)(output, torch.full_like(labels, IGNORE))
    value.backward()
    assert value == 0
    assert (masks.grad == 0).all()


# --- numbers


def test_parts_are_those_of_the_full_resolution_stage_and_weights_halve():
    output, labels = example()
    loss = criterion()
    value, parts = loss(output, labels)
    assert loss.stage_weights(5) == pytest.approx([16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31])
    alone, same = loss(HeadOutput(output.stages[:1]), labels)
    assert parts.keys() == {"class", "bce", "dice"}
    assert all(torch.equal(parts[name], same[name]) and not parts[name].requires_grad for name in parts)
    torch.testing.assert_close(alone.detach(), 2 * parts["class"] + 10 * parts["bce"] + 10 * parts["dice"])
    assert not torch.equal(alone, value)


@pytest.mark.parametrize(("where", "name"), [("masks", "masks"), ("class_logits", "class logits")])
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"assigner": "fixed"}, {"match": "per_stage"}, {"points": 20}], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), 1e30])
def test_what_is_not_finite_is_an_error_that_names_it(where, name, stage, settings, bad):
    """1e30 is finite, but sums of it over a patch, or squares, are not for long."""
    output, labels = example()
    with torch.no_grad():
        getattr(output.stages[stage], where)[0, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"not finite: NaN or infinity in {name} of stage {stage}$"):
        criterion(**settings)(output, labels)


@pytest.mark.parametrize("settings", [{}, {"assigner": "fixed"}, {"match": "per_stage"}, {"points": 20}], ids=str)
@pytest.mark.parametrize("is_partial", [False, True])
def test_the_device_is_waited_for_once(settings, is_partial, monkeypatch):
    """On the meta device, whose tensors have no values to wait for, only one copy to the host is let through."""
    output, labels = example()
    annotated = torch.tensor([[True, True, False], [True, True, True]]) if is_partial else None
    loss, copies, results = criterion(IGNORE, **settings), [], []
    original = set_criterion.to_host
    monkeypatch.setattr(set_criterion, "to_host", lambda *x: results.append(original(*x)) or results[-1])
    loss(output, labels, annotated=annotated)
    monkeypatch.setattr(set_criterion, "to_host", lambda *x: copies.append(x) or results[0])
    for stage in output.stages:
        stage.masks, stage.class_logits = (
            x.detach().to("meta").requires_grad_() for x in (stage.masks, stage.class_logits)
        )
    known = None if annotated is None else annotated.to("meta")
    value, _ = loss.to("meta")(output, labels.to("meta"), annotated=known)
    value.backward()
    assert output.stages[1].masks.grad.is_meta
    assert len(copies) == len(results) == 1
    assert all(x.is_meta for x in copies[0])
    for wait in (bool, Tensor.item, Tensor.nonzero, Tensor.cpu, Tensor.tolist, lambda x: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait(value.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_patches_that_overflow_float16_do_not_overflow(dtype):
    """96 · 48 · 48 voxels of logits around 50, under autocast."""
    output, labels = example(sizes=[(96, 48, 48)], batch=1)
    output.stages[0].masks = (output.stages[0].masks.detach() * 17).to(dtype)
    expected, _ = criterion()(
        HeadOutput([StageOutput(masks=output.stages[0].masks.float(), class_logits=output.stages[0].class_logits)]),
        labels,
    )
    with torch.autocast("cpu", dtype):
        value, _ = criterion()(output, labels)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert torch.equal(value, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_of_any_integer_type(dtype):
    output, labels = example()
    labels[:, 0] = IGNORE
    assert torch.equal(criterion(IGNORE)(output, labels.to(dtype))[0], criterion(IGNORE)(output, labels)[0])


def test_a_head_of_logits_is_refused_in_words():
    with pytest.raises(JointError, match="use 'ce_dice' for heads that give logits"):
        criterion()(HeadOutput([StageOutput(logits=torch.zeros(1, CLASSES, 2, 2, 2))]), torch.zeros(1, 2, 2, 2))


def test_fewer_queries_than_labels_cannot_be_fixed():
    stage = StageOutput(masks=torch.zeros(1, 2, 2, 2, 2), class_logits=torch.zeros(1, 2, CLASSES + 1))
    with pytest.raises(JointError, match="2 queries for 3 labels; 'assigner: fixed' needs one per label, at least"):
        criterion(assigner="fixed")(HeadOutput([stage]), torch.zeros(1, 2, 2, 2).long())
