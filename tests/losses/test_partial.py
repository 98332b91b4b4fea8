"""Labels that were not annotated: both losses against brute force in float64, their gradients, and two organs learnt
from samples that annotate only one of them each."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.losses.ce_dice import CEDiceConfig, CEDiceLoss
from maskmed_zoo.losses.matcher import matching_costs
from maskmed_zoo.losses.partial import claimed_share, explain_rest, log_unclaimed, only_annotated, partial_costs
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig

CLASSES, QUERIES, IGNORE = 4, 6, 4
SIZES = [(2, 6, 4), (1, 3, 2)]
PART = torch.tensor([[True, True, False, False], [True, True, True, True], [True, False, True, False]])


def example(seed: int = 0, sizes=SIZES) -> tuple[HeadOutput, Tensor]:
    """Of queries; labels of the complete truth, some ignored."""
    generator = torch.Generator().manual_seed(seed)
    stages = [
        StageOutput(
            masks=(torch.randn(3, QUERIES, *size, generator=generator) * 2).requires_grad_(),
            class_logits=torch.randn(3, QUERIES, CLASSES + 1, generator=generator).requires_grad_(),
        )
        for size in sizes
    ]
    labels = torch.randint(0, CLASSES, (3, *sizes[0]), generator=generator)
    labels[:, 0, 0, :2] = IGNORE
    return HeadOutput(stages), labels


def dense(output: HeadOutput) -> HeadOutput:
    """Logits instead of queries."""
    return HeadOutput(
        [StageOutput(logits=s.masks.detach()[:, :CLASSES].clone().requires_grad_()) for s in output.stages]
    )


def leaves(output: HeadOutput) -> list[Tensor]:
    return [x for s in output.stages for x in (s.logits, s.masks, s.class_logits) if x is not None]


def losses() -> dict[str, tuple[Any, HeadOutput]]:
    queries = example()[0]
    settings: list[dict[str, Any]] = [
        {},
        {"assigner": "fixed"},
        {"match": "per_stage"},
        {"points": 20},
        {"semantic_weight": 5.0},
        {"no_object_weight": 0.1},
    ]
    found: dict[str, tuple[Any, HeadOutput]] = {
        str(s): (SetCriterion(num_classes=CLASSES, config=SetCriterionConfig(**s), ignore_label=IGNORE), queries)
        for s in settings
    }
    every_stage = CEDiceConfig(supervise_lowest=True)
    ce_dice = CEDiceLoss(num_classes=CLASSES, config=every_stage, ignore_label=IGNORE)
    return found | {"ce_dice": (ce_dice, dense(queries))}


every_loss = pytest.mark.parametrize(("loss", "output"), losses().values(), ids=losses().keys())


def run(loss: nn.Module, output: HeadOutput, labels: Tensor, annotated: Tensor | None) -> list[Tensor]:
    """Value, parts and gradients."""
    torch.manual_seed(0)
    value, parts = loss(output, labels, annotated=annotated)
    return [value.detach(), *parts.values(), *torch.autograd.grad(value, leaves(output))]


# --- both losses


@every_loss
def test_all_annotated_is_the_same_to_the_last_bit(loss, output):
    labels = example()[1]
    plain, complete = (run(loss, output, labels, a) for a in (None, torch.ones(3, CLASSES, dtype=torch.bool)))
    assert all(torch.equal(a, b) for a, b in zip(plain, complete, strict=True))
    part = run(loss, output, labels, PART)
    assert not any(torch.equal(a, b) for a, b in zip(plain, part, strict=True))


@every_loss
def test_what_was_not_looked_for_has_no_say_in_the_labels(loss, output):
    """A voxel of such a label is as good as one of label 0."""
    labels = example()[1]
    hidden = only_annotated(labels, PART)
    assert hidden[0].unique().tolist() == [0, 1, IGNORE]
    assert torch.equal(hidden[1], labels[1])
    assert hidden[2].unique().tolist() == [0, 2, IGNORE]
    assert torch.equal(hidden[PART[:, 1:].sum(1) == 3], labels[1:2])
    assert all(
        torch.equal(a, b) for a, b in zip(run(loss, output, labels, PART), run(loss, output, hidden, PART), strict=True)
    )


@every_loss
@pytest.mark.parametrize("content", [0, 1, IGNORE])
def test_samples_with_nothing_to_learn_from_are_finite(loss, output, content):
    """Only the background annotated, and a patch of one label, annotated or not, or none."""
    labels = torch.full_like(example()[1], content)
    annotated = torch.tensor([[True, False, False, False]] * 3)
    found = run(loss, output, labels, annotated)
    assert all(x.isfinite().all() for x in found)
    if content == IGNORE:
        assert all((x == 0).all() for x in found)


@every_loss
def test_a_table_of_another_shape_is_refused(loss, output):
    with pytest.raises(JointError, match=r"annotated \(3, 3\) must be \(batch, labels\) = \(3, 4\), bool"):
        loss(output, example()[1], annotated=PART[:, 1:])


@pytest.mark.parametrize("ignore_label", [255, -100, CLASSES])
def test_an_ignore_label_stays(ignore_label):
    labels = torch.tensor([ignore_label, 0, 1, 3]).expand(3, -1)[:, None, None]
    assert only_annotated(labels, PART)[0].flatten().tolist() == [ignore_label, 0, 1, 0]


# --- dense


def test_dense_loss_equals_the_sum_over_what_a_voxel_may_be():
    output, labels = example()
    output = dense(HeadOutput(output.stages[:1]))
    value, parts = CEDiceLoss(num_classes=CLASSES, ignore_label=IGNORE)(output, labels, annotated=PART)
    p = output.stages[0].logits.double().softmax(1)
    ce, count, dices = 0.0, 0, []
    for b in range(3):
        valid = labels[b] != IGNORE
        unknown = [k for k in range(CLASSES) if k == 0 or not PART[b, k]]
        for v in valid.nonzero().tolist():
            label = int(labels[b][tuple(v)])
            may_be = unknown if label in unknown else [label]
            ce = ce - sum(p[(b, k, *v)] for k in may_be).log()
            count += 1
        for k in range(1, CLASSES):
            if PART[b, k]:
                inside = p[b, k] * valid
                overlap = (inside * (labels[b] == k)).sum()
                dices.append((2 * overlap + 1e-5) / (inside.sum() + (labels[b] == k).sum() + 1e-5))
    assert len(dices) == 1 + 3 + 1
    dice: Any = 1 - sum(dices) / len(dices)
    assert float(parts["ce"]) == pytest.approx(float(ce.detach() / count), rel=1e-6)
    assert float(parts["dice"]) == pytest.approx(float(dice.detach()), rel=1e-6)
    ours, expected = (torch.autograd.grad(x, leaves(output), retain_graph=True)[0] for x in (value, ce / count + dice))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-8)


# --- queries: the background


def test_the_rest_is_explained_by_the_background_or_any_claim():
    """Over all combinations of who does and does not cover the voxel: what is left when nobody does is not covered."""
    generator = torch.Generator().manual_seed(0)
    background, others = torch.randn(2, 9, generator=generator) * 3, torch.randn(2, 3, 9, generator=generator) * 3
    share = torch.rand(2, 3, generator=generator)
    target = torch.randint(0, 2, (2, 9), generator=generator).float()
    bce, p = explain_rest(background, target, log_unclaimed(others, share).sum(1))
    covers = torch.cat([background[:, None], others], 1).double().sigmoid()
    covers[:, 1:] *= share[..., None]
    somebody = torch.zeros(2, 9, dtype=torch.float64)
    for who in product([False, True], repeat=4):
        chance = torch.stack([covers[:, i] if yes else 1 - covers[:, i] for i, yes in enumerate(who)], 1).prod(1)
        somebody += chance * any(who)
    torch.testing.assert_close(p.double(), somebody, rtol=1e-5, atol=1e-7)
    expected = -(target * somebody.log() + (1 - target) * (1 - covers[:, 0]).log())
    torch.testing.assert_close(bce.double(), expected, rtol=1e-5, atol=1e-6)


def test_without_claims_the_terms_are_the_ordinary_ones():
    background = (torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * 20).requires_grad_()
    target = (torch.arange(100) % 2).view(2, 50).float()
    nothing = log_unclaimed(torch.randn(2, 3, 50), torch.zeros(2, 3)).sum(1)
    assert (nothing == 0).all()
    bce, p = explain_rest(background, target, nothing)
    ordinary = F.binary_cross_entropy_with_logits(background, target, reduction="none")
    torch.testing.assert_close(bce, ordinary)
    torch.testing.assert_close(p, background.sigmoid())
    ours, expected = (torch.autograd.grad(x.sum(), background)[0] for x in (bce, ordinary))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("background", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("other", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("share", [0.0, 1e-30, 0.5, 1.0])
def test_extreme_logits_stay_finite(background, other, share):
    m = torch.full((1, 2), background, requires_grad=True)
    log_free = log_unclaimed(torch.full((1, 3, 2), other), torch.full((1, 3), share)).sum(1)
    bce, p = explain_rest(m, torch.tensor([[0.0, 1.0]]), log_free)
    (bce.sum() + p.sum()).backward()
    assert bce.isfinite().all()
    assert ((p >= 0) & (p <= 1.0001)).all()
    assert m.grad.isfinite().all()


def test_costs_of_the_background_are_those_of_explaining_label_zero():
    output, labels = example()
    masks, class_logits = (x.detach() for x in leaves(output)[:2])
    masks, rest = masks.flatten(2), (labels == 0).flatten(1)
    valid = (labels != IGNORE).flatten(1).unsqueeze(1)
    marks, classes = torch.stack([rest, ~rest], 1), torch.tensor([[0, 1]] * 3)
    plain = matching_costs(masks, class_logits, marks, classes, weights=(2, 10, 10), valid=valid)
    costs = partial_costs(plain, masks, class_logits, rest, PART, weights=(2, 10, 10), valid=valid)
    assert torch.equal(costs[1], plain[1])
    for b in (0, 2):
        keep, p = valid[b, 0], class_logits[b].double().softmax(-1)
        share, covers = p[:, :CLASSES][:, ~PART[b]].sum(1), masks[b].double().sigmoid()[:, keep]
        torch.testing.assert_close(costs[b, :, 1], (plain[b, :, 1] + 2 * 22 * share).float(), rtol=1e-5, atol=1e-5)
        covers = covers[:, rest[b, keep]]
        for q in range(QUERIES):
            free = torch.stack([1 - share[o] * covers[o] for o in range(QUERIES) if o != q]).prod(0)
            explained = 1 - (1 - covers[q]) * free
            dice = 1 - (2 * explained.sum() + 1) / (explained.sum() + len(explained) + 1)
            expected = 2 * -p[q, 0] - 10 * explained.log().mean() + 10 * dice
            assert float(costs[b, q, 0]) == pytest.approx(float(expected), rel=1e-5)


def test_claims_beyond_doubt_leave_costs_finite():
    masks, class_logits = torch.full((1, QUERIES, 8), 1e4), torch.zeros(1, QUERIES, CLASSES + 1)
    class_logits[..., 3] = 1e4
    rest, annotated = torch.ones(1, 8, dtype=torch.bool), torch.tensor([[True, True, True, False]])
    costs = partial_costs(
        torch.zeros(1, QUERIES, 1), masks, class_logits, rest, annotated, weights=(2, 10, 10), valid=None
    )
    assert costs.isfinite().all()


# --- queries: the whole criterion


@pytest.mark.parametrize(
    "settings", [{}, {"assigner": "fixed"}, {"match": "per_stage"}, {"no_object_weight": 0.3}], ids=str
)
@pytest.mark.parametrize("seed", range(2))
def test_equals_brute_force_given_the_pairs(seed, settings):
    output, labels = example(seed)
    loss = SetCriterion(num_classes=CLASSES, config=SetCriterionConfig(**settings), ignore_label=IGNORE)
    value, _ = loss(output, labels, annotated=PART)
    full = loss.targets(labels, PART)
    targets = [full.at(s.masks.shape[2:]) for s in output.stages]
    pairs = [p.assignment for p in loss.assign(output.stages, targets, PART)]
    total = torch.zeros((), dtype=torch.float64)
    for weight, stage, at_stage, assignment in zip((2 / 3, 1 / 3), output.stages, targets, pairs, strict=True):
        classes, norm, bces, dices = 0.0, 0.0, [], []
        for b in range(3):
            p = stage.class_logits[b].double().softmax(-1)
            unknown = [k for k in range(CLASSES) if not PART[b, k]]
            covers, valid = stage.masks[b].double().sigmoid(), ~at_stage.ignored[b, 0]
            unmatched = [q for q in range(QUERIES) if assignment[b, q] < 0]
            for q in range(QUERIES):
                k = int(assignment[b, q])
                w = loss.config.no_object_weight if k < 0 else 1.0
                classes = classes - w * (p[q, k] if k >= 0 else p[q, [CLASSES, *unknown]].sum()).log()
                norm += w
                if k < 0:
                    continue
                t, explained = at_stage.masks[b, k].double(), covers[q]
                if k == 0:
                    for u in unmatched:
                        claim = p[u, unknown].sum() * covers[u]
                        explained = explained + (1 - explained) * claim.detach()
                bce = -(t * explained.log() + (1 - t) * (1 - covers[q]).log())
                bces.append(bce[valid].sum() / max(1, int(valid.sum())))
                inside = (explained * t)[valid].sum()
                dices.append(1 - (2 * inside + 1) / (explained[valid].sum() + t[valid].sum() + 1))
        masks = 10 * sum(bces) / len(bces) + 10 * sum(dices) / len(dices)
        total = total + weight * (2 * classes / norm + masks)
    torch.testing.assert_close(value.double(), total, rtol=1e-6, atol=1e-6)
    for x in leaves(output):
        ours, expected = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (value, total))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)


def right_answer(labels: Tensor) -> HeadOutput:
    """Query k answers for label k of the complete truth; the rest for nothing."""
    masks = torch.full((len(labels), QUERIES, *labels.shape[1:]), -8.0)
    masks[:, :CLASSES] = F.one_hot(labels, CLASSES).movedim(-1, 1) * 16.0 - 8
    classes = torch.tensor([*range(CLASSES), *[CLASSES] * (QUERIES - CLASSES)])
    logits = (F.one_hot(classes, CLASSES + 1) * 12.0).repeat(len(labels), 1, 1)
    return HeadOutput([StageOutput(masks=masks.requires_grad_(), class_logits=logits.requires_grad_())])


def test_who_gets_which_signal():
    """Organs 2 and 3 are there but were not annotated: their queries claim them, and nothing is held against that."""
    labels = example()[1][:1] % CLASSES
    annotated = torch.tensor([[True, True, False, False]])
    output = right_answer(labels)
    stage: Any = output.stages[0]
    hidden = labels * (labels == 1)
    value, _ = SetCriterion(num_classes=CLASSES)(output, hidden, annotated=annotated)
    assert value < 0.01
    masks, classes = torch.autograd.grad(value, (stage.masks, stage.class_logits))
    assert (masks[:, 2:] == 0).all()
    assert masks.abs().max() < 1e-3  # the background is not pulled to where organs 2 and 3 are claimed
    assert classes.abs().max() < 1e-3  # nor are their queries to "no object"
    naive, _ = SetCriterion(num_classes=CLASSES)(output, hidden)
    assert naive > 1
    pulled = torch.autograd.grad(naive, stage.masks)[0][0, 0]
    assert (pulled[labels[0] >= 2] < -1e-3).all()
    # Where nobody claims, the background is due; and organ 1 is not, wherever the label is 0.
    with torch.no_grad():
        stage.masks[0, 2] = -8
        stage.masks[0, 1] = 0
    value, _ = SetCriterion(num_classes=CLASSES)(output, hidden, annotated=annotated)
    masks = torch.autograd.grad(value, stage.masks)[0][0]
    assert (masks[0][labels[0] == 2] < -1e-3).all()
    assert (masks[0][labels[0] == 3] > -1e-3).all()
    assert (masks[1][hidden[0] == 0] > 0).all()
    assert (masks[2:] == 0).all()


def test_an_unmatched_query_may_be_nothing_or_what_was_not_looked_for():
    """The gradient of -log of a sum of probabilities: p minus the share in that sum."""
    output, labels = example()
    labels = torch.where(labels == IGNORE, IGNORE, 0)
    loss = SetCriterion(
        num_classes=CLASSES, config=SetCriterionConfig(bce_weight=0, dice_weight=0), ignore_label=IGNORE
    )
    logits: Any = output.stages[0].class_logits
    value, _ = loss(HeadOutput(output.stages[:1]), labels, annotated=PART)
    gradient = torch.autograd.grad(value, logits)[0] * 3 * QUERIES / 2
    p = logits.detach().softmax(-1)
    for b in range(3):
        may_be = torch.tensor([not x for x in PART[b]] + [True])
        posterior = p[b] * may_be / (p[b] * may_be).sum(-1, keepdim=True)
        matched = F.one_hot(torch.tensor(0), CLASSES + 1).float()
        is_open = [torch.allclose(gradient[b, q], p[b, q] - posterior[q], atol=1e-6) for q in range(QUERIES)]
        is_background = [torch.allclose(gradient[b, q], p[b, q] - matched, atol=1e-6) for q in range(QUERIES)]
        assert sum(is_open) == QUERIES - 1
        assert sum(is_background) == 1


def test_who_stands_for_what_was_not_looked_for_is_spoken_for():
    """Two queries fit organ 1 alike but for their class; the one that claims organ 2 is passed over, if 2 is open."""
    labels = torch.zeros(1, 2, 4, 4, dtype=torch.int64)
    labels[0, :, :2] = 1
    output = right_answer(labels)
    stage: Any = output.stages[0]
    loss = SetCriterion(num_classes=CLASSES)
    with torch.no_grad():
        stage.class_logits[0, 1] = torch.tensor([0.0, 3, 3, 0, 0])
        stage.class_logits[0, 5] = torch.tensor([0.0, 2, 0, 0, 3])
        stage.masks[0, 5] = stage.masks[0, 1]

    def who(annotated: list[bool]) -> int:
        table = torch.tensor([annotated])
        pairs = loss.assign(output.stages, [loss.targets(labels, table)], table)[0]
        return int((pairs.assignment[0] == 1).nonzero())

    assert who([True, True, True, True]) == 1
    assert who([True, True, False, True]) == 5
    share = claimed_share(stage.class_logits, torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(share, stage.class_logits.detach().softmax(-1)[..., 2:4].sum(-1))


# --- learning


def scenes(generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Two boxes, one bright and one dark, in noise."""
    labels = torch.zeros(batch, 4, 8, 8, dtype=torch.int64)
    for sample in labels:
        y = int(torch.randint(0, 5, (), generator=generator))
        sample[1:3, y : y + 3, :3], sample[1:3, y : y + 3, 5:] = 1, 2
    noise = torch.randn(batch, 1, 4, 8, 8, generator=generator) * 0.3
    return noise + torch.tensor([0.0, 1.5, -1.5])[labels].unsqueeze(1), labels


def learnt(loss: nn.Module, seed: int, is_told: bool) -> tuple[float, float]:
    """After training where each sample's labels hold one organ, on complete labels, for the worse of both organs: Dice,
    and the probability given to it where it is."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Conv3d(1, 16, 1), nn.ReLU(), nn.Conv3d(16, 3 if isinstance(loss, CEDiceLoss) else 4, 1))
    classes = nn.Parameter(torch.randn(4, 4) * 0.1)
    optimizer = torch.optim.Adam([*net.parameters(), classes], lr=0.04)

    def predict(image: Tensor) -> HeadOutput:
        x = net(image)
        if isinstance(loss, CEDiceLoss):
            return HeadOutput([StageOutput(logits=x)])
        return HeadOutput([StageOutput(masks=x, class_logits=classes.expand(len(x), -1, -1))])

    annotated = torch.tensor([[True, True, False], [True, False, True]])
    for _ in range(100):
        image, labels = scenes(generator, 2)
        value, _ = loss(predict(image), only_annotated(labels, annotated), annotated=annotated if is_told else None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    image, labels = scenes(generator, 16)
    p = predict(image).log_probabilities().exp().detach()
    dices, sure = [], []
    for k in (1, 2):
        found, there = p.argmax(1) == k, labels == k
        dices.append(float(2 * (found & there).sum() / (found.sum() + there.sum())))
        sure.append(float(p[:, k][there].mean()))
    return min(dices), min(sure)


@pytest.mark.parametrize(("kind", "untold"), [("ce_dice", 0.8), ("hungarian", 0.5), ("fixed", 0.5)])
def test_two_organs_are_learnt_from_samples_that_hold_one_each(kind, untold):
    """Without being told, half the samples call an organ background."""
    config = SetCriterionConfig(assigner=kind) if kind != "ce_dice" else None
    loss = CEDiceLoss(num_classes=3) if config is None else SetCriterion(num_classes=3, config=config)
    for seed in (0, 1):
        dice, sure = learnt(loss, seed, is_told=True)
        assert dice > 0.95
        assert sure > (0.9 if kind == "ce_dice" else 0.75)
    assert learnt(loss, 0, is_told=False)[1] < untold
