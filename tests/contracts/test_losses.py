"""One contract for what every registered loss makes of partial labels and instances."""

from __future__ import annotations

import pytest
import torch

from maskmed_zoo.errors import JointError
from tests.contracts.test_components import NUM_CLASSES, cases, tensors

every_loss = pytest.mark.parametrize("case", cases("loss"))


@every_loss
def test_all_labels_looked_for_is_the_same_as_not_saying_so_and_fewer_are_another_finite_value(case):
    loss, (output, labels) = case.build(), case.inputs(batch=2)
    annotated = torch.ones(2, NUM_CLASSES, dtype=torch.bool)
    plain, complete = loss(output, labels)[0], loss(output, labels, annotated=annotated)[0]
    assert torch.equal(plain, complete)
    annotated[0, 2] = False
    for x in tensors(output):
        x.requires_grad_()
    value, _ = loss(output, labels, annotated=annotated)
    value.backward()
    assert not torch.equal(value, plain)
    assert all(x.grad is None or x.grad.isfinite().all() for x in tensors(output))


@every_loss
def test_instances_are_told_apart_or_refused_or_of_no_use_to_a_dense_loss(case):
    loss, (output, labels) = case.build(), case.inputs(batch=2)
    instances = (torch.arange(labels.shape[-1]) % 2 + 1).expand_as(labels)
    try:
        loss.check_instances()
    except JointError:
        with pytest.raises(JointError, match="instances"):
            loss(output, labels, instances=instances)
        return
    is_same = torch.equal(loss(output, labels, instances=instances)[0], loss(output, labels)[0])
    assert is_same is (loss.accepts == "logits")
