"""The matcher: costs against Hugging Face's Mask2Former, assignment against all permutations, and what it refuses.

Hugging Face scores a random sample of points; here its sampler is replaced by "every voxel", and then its class, BCE
and Dice costs are the same as ours: BCE as a mean over voxels, Dice with 1 added above and below. It differs where a
cost is not finite: it puts the largest float there, we refuse.
"""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mask2former import modeling_mask2former as mask2former

from maskmed_zoo.errors import NonFiniteError
from maskmed_zoo.losses.matcher import Pairs, fixed, hungarian, matching_costs, to_host

QUERIES, CLASSES = 5, 3


def example(voxels: int = 60, batch: int = 2, seed: int = 0):
    """Masks, class logits, targets (one per label), their classes, valid."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(batch, QUERIES, voxels, generator=generator) * 3
    class_logits = torch.randn(batch, QUERIES, CLASSES + 1, generator=generator)
    labels = torch.randint(0, CLASSES, (batch, voxels), generator=generator)
    targets = torch.stack([labels == k for k in range(CLASSES)], 1)
    classes = torch.arange(CLASSES).expand(batch, -1)
    return masks, class_logits, targets, classes, torch.ones(batch, 1, voxels, dtype=torch.bool)


def cheapest(costs: Tensor, targets: list[int]) -> float:
    """Over all ways to give every target a query of its own."""
    return min(
        sum(float(costs[q, t]) for q, t in zip(chosen, targets, strict=True))
        for chosen in permutations(range(len(costs)), len(targets))
    )


# --- costs


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 10, 10)])
def test_costs_equal_the_definition_in_float64(weights):
    masks, class_logits, targets, classes, valid = example()
    valid[0, 0, :20] = 0
    costs = matching_costs(masks, class_logits, targets, classes, valid=valid, weights=weights)
    assert costs.shape == (2, QUERIES, CLASSES)
    assert costs.dtype == torch.float32
    for b in range(2):
        keep = valid[b, 0] > 0
        for q in range(QUERIES):
            p = masks[b, q, keep].double().sigmoid()
            for t in range(CLASSES):
                m = targets[b, t, keep].double()
                bce = -(m * p.log() + (1 - m) * (1 - p).log()).mean()
                dice = 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
                score = class_logits[b, q].double().softmax(-1)[t]
                expected = weights[0] * -score + weights[1] * bce + weights[2] * dice
                assert float(costs[b, q, t]) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_mask_costs_equal_those_of_hugging_face():
    masks, class_logits, targets, classes, valid = example()
    for b in range(2):
        for weights, reference in (
            ((0, 1, 0), mask2former.pair_wise_sigmoid_cross_entropy_loss(masks[b], targets[b].float())),
            ((0, 0, 1), mask2former.pair_wise_dice_loss(masks[b], targets[b].float())),
        ):
            ours = matching_costs(masks, class_logits, targets, classes, valid=valid, weights=weights)[b]
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_equals_that_of_hugging_face(seed, monkeypatch):
    """A 2-D image is a volume of depth one: 6 x 10 voxels."""
    monkeypatch.setattr(mask2former, "sample_point", lambda features, *_, **__: features.flatten(2))
    masks, class_logits, targets, classes, valid = example(seed=seed)
    targets[1, 0] = False  # a label that the second patch lacks
    present = targets.any(-1)
    lists = [[t for t in range(CLASSES) if present[b, t]] for b in range(2)]
    theirs = mask2former.Mask2FormerHungarianMatcher(cost_class=2, cost_mask=10, cost_dice=10)(
        masks.unflatten(-1, (6, 10)),
        class_logits,
        [targets[b, lists[b]].float().unflatten(-1, (6, 10)) for b in range(2)],
        [torch.tensor(x) for x in lists],
    )
    ours = hungarian(matching_costs(masks, class_logits, targets, classes, valid=valid, weights=(2, 10, 10)), present)
    for b, (queries, indices) in enumerate(theirs):
        expected = torch.full((QUERIES,), -1)
        expected[queries] = torch.tensor(lists[b])[indices]
        assert torch.equal(ours[b], expected)


def test_ignored_voxels_do_not_enter():
    masks, class_logits, targets, classes, valid = example()
    valid[:, :, :20] = 0
    costs = matching_costs(masks, class_logits, targets, classes, valid=valid, weights=(2, 10, 10))
    cut = [x[..., 20:] for x in (masks, targets, valid)]
    torch.testing.assert_close(
        costs, matching_costs(cut[0], class_logits, cut[1], classes, valid=cut[2], weights=(2, 10, 10))
    )
    masks[..., :20], targets[..., :20] = 1000, ~targets[..., :20]
    assert torch.equal(costs, matching_costs(masks, class_logits, targets, classes, valid=valid, weights=(2, 10, 10)))


def test_nothing_valid_gives_finite_costs():
    masks, class_logits, targets, classes, valid = example()
    assert matching_costs(masks, class_logits, targets, classes, valid=~valid, weights=(2, 10, 10)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_costs_are_float32_under_autocast_and_do_not_overflow(dtype):
    """96 · 48 · 48 voxels of logits around 50: every sum is far above float16's largest number, 65504."""
    voxels = 96 * 48 * 48
    masks, class_logits, targets, classes, valid = example(voxels, batch=1)
    masks = (masks * 17).to(dtype)
    assert masks.sum(-1).abs().amax() < torch.inf
    expected = matching_costs(masks.double().float(), class_logits, targets, classes, valid=valid, weights=(2, 10, 10))
    with torch.autocast("cpu", torch.bfloat16):
        costs = matching_costs(
            masks, class_logits.to(dtype).float(), targets, classes, valid=valid, weights=(2, 10, 10)
        )
    assert costs.dtype == torch.float32
    torch.testing.assert_close(costs, expected, rtol=1e-3, atol=1e-3)
    assert torch.einsum("bnv,btv->bnt", masks.float().abs(), targets.float()).amax() > torch.finfo(torch.float16).max


def test_no_gradient_flows_through_the_costs():
    masks, class_logits, targets, classes, valid = example()
    costs = matching_costs(
        masks.requires_grad_(), class_logits.requires_grad_(), targets, classes, valid=valid, weights=(2, 10, 10)
    )
    assert not costs.requires_grad


def test_all_voxels_count_where_no_valid_is_given():
    masks, class_logits, targets, classes, valid = example()
    costs = [matching_costs(masks, class_logits, targets, classes, valid=x, weights=(2, 10, 10)) for x in (valid, None)]
    assert torch.equal(*costs)


def test_every_sample_has_classes_of_its_own():
    """Targets as instances give them: several of one class, in another order in each sample."""
    masks, class_logits, targets, _, _ = example()
    classes = torch.tensor([[0, 2, 2], [1, 1, 0]])
    costs = matching_costs(masks, class_logits, targets, classes, weights=(1, 0, 0))
    expected = torch.stack([-class_logits[b].softmax(-1)[:, classes[b]] for b in range(2)])
    assert torch.equal(costs, expected)


# --- assignment


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    present=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
)
def test_hungarian_is_the_cheapest_of_all_permutations(queries, seed, present):
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor(present)[:, :queries]
    costs = torch.randn(len(present), queries, present.shape[1], generator=generator)
    assignment = hungarian(costs, present)
    assert assignment.shape == (len(present), queries)
    assert assignment.dtype == torch.int64
    for b in range(len(present)):
        targets = [t for t in range(present.shape[1]) if present[b, t]]
        given_to = {int(t): q for q, t in enumerate(assignment[b]) if t >= 0}
        assert sorted(given_to) == targets
        assert sum(int(t) >= 0 for t in assignment[b]) == len(targets)
        total = sum(float(costs[b, q, t]) for t, q in given_to.items())
        assert total == pytest.approx(cheapest(costs[b], targets), abs=1e-5)


def test_absent_targets_are_not_given_out_however_cheap():
    costs = torch.zeros(1, 3, 3)
    costs[0, :, 1] = -100
    assignment = hungarian(costs, torch.tensor([[True, False, True]]))
    assert sorted(assignment[0].tolist()) == [-1, 0, 2]


def test_an_empty_batch_of_targets():
    assert (hungarian(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.bool)) == -1).all()


def test_of_too_many_targets_the_cheapest_are_taken():
    costs = torch.tensor([[[3.0, 1, 2, 0], [3, 1, 5, 4]]])
    assert hungarian(costs, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[3, 1]]
    assert hungarian(costs, torch.tensor([[True, True, True, False]])).tolist() == [[2, 1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_cost_that_is_not_finite_is_refused_even_for_an_absent_target(bad):
    costs = torch.zeros(2, 3, 2)
    costs[1, 2, 0] = bad
    with pytest.raises(NonFiniteError, match=r"matching cost is not finite"):
        hungarian(costs, torch.tensor([[True, True], [False, True]]))


def test_tensors_of_any_kind_go_to_the_host_in_one_copy(monkeypatch):
    copies = []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self, *a: copies.append(self.shape) or original(self, *a))
    sent = [torch.randn(3, 4, 2), torch.tensor([[True, False]]), torch.zeros(0, 5), torch.tensor(7)]
    received = to_host(*sent)
    assert copies == [(24 + 2 + 0 + 1,)]
    assert all(torch.equal(a, b.float()) for a, b in zip(received, sent, strict=True))


def test_fixed_gives_query_i_target_i_where_present():
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    assert fixed(present, 5).tolist() == [[0, -1, 2, -1, -1], [0, 1, 2, -1, -1], [-1] * 5]
    assert fixed(present, 3).tolist() == [[0, -1, 2], [0, 1, 2], [-1] * 3]


def test_pairs_are_those_of_the_assignment():
    assignment = torch.tensor([[2, -1, 0], [0, 1, -1], [-1, -1, -1]])
    pairs = Pairs.of(assignment, torch.tensor([False, True, True]), torch.device("cpu"))
    assert torch.equal(pairs.assignment, assignment)
    assert [pairs.sample.tolist(), pairs.query.tolist(), pairs.target.tolist()] == [
        [0, 0, 1, 1],
        [0, 2, 0, 1],
        [2, 0, 0, 1],
    ]
    assert (len(pairs), pairs.is_partial, pairs.rest.tolist()) == (4, True, [2])  # background of the second sample
    complete = Pairs.of(assignment, torch.zeros(3, dtype=torch.bool), torch.device("cpu"))
    assert (complete.is_partial, len(complete.rest)) == (False, 0)
