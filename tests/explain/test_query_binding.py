"""Binding and purity by hand, Dice of masks against MONAI's."""

from __future__ import annotations

import pytest
import torch
from monai.metrics import compute_dice

from maskmed_zoo.contracts import StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.explain.query_binding import (
    Purity,
    bound_classes,
    class_weights,
    mean_purity,
    purity,
    query_order,
    serving_queries,
)


def masks(*filled: bool) -> torch.Tensor:
    """(1 n 2 2 2) mask logits with one voxel at 0 where `filled`, else all negative."""
    logits = torch.full((1, len(filled), 2, 2, 2), -1.0)
    logits[0, torch.tensor(filled), 0, 0, 0] = 0.0
    return logits


def test_queries_are_bound_by_class_and_filled_mask() -> None:
    """Two labels and "no object"; background is a class."""
    logits = torch.tensor([[[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3]]])
    stage = StageOutput(masks=masks(True, True, False, True), class_logits=logits)
    assert bound_classes(stage) == [0, 1, None, None]
    weights = class_weights(stage)
    assert weights is not None
    torch.testing.assert_close(weights, logits[0].softmax(-1))


def test_dense_queries_have_no_no_object() -> None:
    classes = torch.tensor([[[3.0, 0, 0], [0, -3, 4], [0, 1, 0]]])
    stage = StageOutput.of_products(masks(True, True, False), classes)
    assert bound_classes(stage) == [0, 2, None]
    assert torch.equal(class_weights(stage), classes[0])  # type: ignore[arg-type]
    pointwise = StageOutput(logits=torch.zeros(1, 3, 2, 2, 2))
    assert class_weights(pointwise) is None
    with pytest.raises(JointError, match="no queries"):
        bound_classes(pointwise)


def test_serving_queries_have_the_highest_dice() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 5, 6, generator=generator)
    reference = torch.randint(-1, 4, (4, 5, 6), generator=generator)
    reference[reference == 3] = 0
    served = serving_queries(logits, reference, (0, 1, 2, 3))
    assert set(served) == {0, 1, 2}, "label 3 is not in the reference"
    counted = reference >= 0
    for label, (query, dice) in served.items():
        binary = (logits >= 0) & counted
        target = (reference == label).expand_as(binary)
        oracle = compute_dice(binary[:, None].float(), target[:, None].float()).flatten()
        assert query == int(oracle.argmax())
        assert dice == pytest.approx(float(oracle.max()))
    assert set(serving_queries(logits, reference, (1,))) == {1}
    assert serving_queries(-logits.abs() - 1, reference, (0, 1, 2)) == {}, "masks that touch nothing serve nothing"


def test_purity_by_hand() -> None:
    assert purity([1, 1, None, 2]) == Purity(1, 3, 2 / 3)
    assert purity([2, 1, 1, 2]) == Purity(1, 4, 0.5), "the smaller of two equally frequent ones"
    assert purity([None, None]) == Purity(None, 0, None)
    rows = [purity([1, 1, None, 2]), purity([3]), purity([None]), purity([0, 0, 0, 0])]
    assert mean_purity(rows) == pytest.approx((2 + 1 + 4) / (3 + 1 + 4))
    assert mean_purity([purity([None])]) is None
    assert query_order(rows, 4) == [3, 0, 1, 2], "by class, the one never bound last"
