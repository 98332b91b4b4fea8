"""One contract for what every registered loss makes of partial labels and instances, and of inputs that do not fit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch.nn import functional as F

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.losses import inputs
from tests.contracts.test_components import IGNORE, NUM_CLASSES, Case, cases, tensors

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


# --- inputs that do not fit

OUT_OF_RANGE = {
    "255 for 1": (
        255,
        r"labels hold 255 \(values from 0 to 255\); expected whole numbers from 0 to 2, or 3, which is ",
    ),
    "-1": (-1, r"labels hold -1 "),
    "one too many": (NUM_CLASSES + 1, r"labels hold 4 "),
    "the default of cross_entropy": (-100, r"labels hold -100 "),
    "2^40": (2**40, r"labels hold 1099511627776 "),
}
AS_LOADED = {
    "a channel": lambda x: x.unsqueeze(1),
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "a channel, float": lambda x: x.unsqueeze(1).float(),
    "MONAI's": lambda x: MetaTensor(x.unsqueeze(1).float()),
    "uint8": lambda x: x.to(torch.uint8),
    "uint16": lambda x: x.to(torch.uint16),
    "int8": lambda x: x.to(torch.int8),
}
UNFIT = {
    "axes in another order": (lambda x: x.transpose(1, 2), r"axes are z, y, x, as the image's: permute them"),
    "uncropped": (
        lambda x: F.pad(x, (0, 4)),
        r"labels \(2, 8, 12, 12\) do not fit .* = \(2, 8, 12, 8\), .* crop, pad ",
    ),
    "one-hot": (lambda x: F.one_hot(x).permute(0, 4, 1, 2, 3), r"of one-hot labels give labels.argmax\(1\)"),
    "another batch size": (lambda x: x[:1], "give one per image of the batch"),
    "no batch": (lambda x: x[0], "give one per image of the batch"),
    "pooled": (lambda x: x[:, ::2, ::2, ::2], r"labels \(2, 4, 6, 4\) do not fit the output \(2, \d, 8, 12, 8\)"),
    "two channels": (lambda x: torch.stack([x, x], 1), "do not fit"),
    "no tensor": (lambda x: x.numpy(), r"labels are a ndarray, expected a tensor; torch.as_tensor makes one"),
    "complex": (lambda x: x.to(torch.complex64), "labels are torch.complex64, expected whole numbers"),
    "elsewhere": (lambda x: x.to("meta"), r"labels are on meta, the output on cpu; give labels.to\('cpu'\)"),
    "halves": (lambda x: x + 0.5, "labels hold numbers that are not whole"),
    "not a number": (lambda x: torch.full_like(x, torch.nan, dtype=torch.float32), "not whole"),
    "infinite": (lambda x: torch.where(x == 1, torch.inf, x.float()), "not whole"),
}
ANNOTATED = {
    "shape": (
        torch.ones(2, NUM_CLASSES + 1, dtype=torch.bool),
        r"annotated \(2, 4\) must be \(batch, labels\) = \(2, 3\)",
    ),
    "batch": (torch.ones(1, NUM_CLASSES, dtype=torch.bool), r"must be \(batch, labels\)"),
    "type": (torch.ones(2, NUM_CLASSES), "bool, got torch.float32"),
    "integers": (torch.ones(2, NUM_CLASSES, dtype=torch.int64), "bool, got torch.int64"),
    "list": ([[True] * NUM_CLASSES] * 2, "annotated are a list, expected a tensor"),
}


def with_labels(case: Case, labels, **more):
    return case.build()(case.inputs(batch=2)[0], labels, **more)[0]


@every_loss
@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_values_that_are_no_label_are_refused_one_voxel_of_them_too(case, name):
    value, message = OUT_OF_RANGE[name]
    labels = case.inputs(batch=2)[1]
    labels[0, 0, 0, 0], labels[1, 3, 2, 1] = 0, value
    with pytest.raises(JointError, match=message) as caught:
        with_labels(case, labels)
    assert "\n" not in str(caught.value)
    if value < 2**24:
        with pytest.raises(JointError, match=message):
            with_labels(case, labels.unsqueeze(1).float())


@every_loss
@pytest.mark.parametrize("name", AS_LOADED)
def test_labels_as_loaders_give_them_are_the_same_labels(case, name):
    labels = case.inputs(batch=2)[1]
    assert torch.equal(with_labels(case, AS_LOADED[name](labels)), with_labels(case, labels))


@every_loss
@pytest.mark.parametrize("name", UNFIT)
def test_labels_that_do_not_fit_the_final_output_are_refused(case, name):
    change, message = UNFIT[name]
    with pytest.raises(JointError, match=message) as caught:
        with_labels(case, change(case.inputs(batch=2)[1]))
    assert "\n" not in str(caught.value)


@every_loss
@pytest.mark.parametrize("name", ANNOTATED)
def test_annotated_of_another_form_is_refused(case, name):
    annotated, message = ANNOTATED[name]
    with pytest.raises(JointError, match=message):
        with_labels(case, case.inputs(batch=2)[1], annotated=annotated)


@every_loss
def test_instances_of_another_form_are_refused_and_a_channel_is_not(case):
    labels = case.inputs(batch=2)[1]
    instances = (torch.arange(labels.shape[-1]) % 2 + 1).expand_as(labels)
    try:
        case.build().check_instances()
    except JointError:
        return  # takes none
    for wrong, message in (
        (instances[:, :, :, ::2], r"instances \(2, 8, 12, 4\) do not fit"),
        (instances - 3, r"instances hold -2 and -1 \(values .*\); expected whole numbers from 0, for none, to 2"),
        (instances << 32, r"instances hold 4294967296 and 8589934592 "),
        (instances / 2, "instances hold numbers that are not whole"),
    ):
        with pytest.raises(JointError, match=message):
            with_labels(case, labels, instances=wrong)
    expected = with_labels(case, labels, instances=instances)
    for same in (instances.unsqueeze(1), instances.float(), instances.to(torch.uint8), MetaTensor(instances[:, None])):
        assert torch.equal(with_labels(case, labels, instances=same), expected)


@every_loss
def test_outputs_that_the_loss_cannot_read_are_refused(case):
    loss, (output, labels) = case.build(), case.inputs(batch=2)
    more = [StageOutput(**{k: None if v is None else torch.cat([v, v], 1 if k != "class_logits" else -1)
                           for k, v in vars(stage).items()}) for stage in output.stages]  # fmt: skip
    flat = [StageOutput(**{k: v if v is None or v.ndim == 3 else v[:, :, 0] for k, v in vars(stage).items()})
            for stage in output.stages]  # fmt: skip
    other = [
        StageOutput(masks=s.logits) if s.logits is not None else StageOutput(logits=s.masks) for s in output.stages
    ]
    for stages, message in (
        (more, "the output has [68] for the [34] that a loss for 3 labels takes of .*; give head and loss the same "),
        (flat, r"expected \w+ of volumes \(b n d h w\), got"),
        (other, "this loss needs .*; use '"),
    ):
        with pytest.raises(JointError, match=message):
            loss(HeadOutput(stages), labels)


@every_loss
def test_the_ignore_label_is_the_one_that_was_given_and_no_other(case):
    """Whatever the type of the labels: -100 is 156 in 8 bits."""
    output, labels = case.inputs(batch=2)
    labels[labels == IGNORE] = 0
    none, minus = (case.cls(config=case.config(), num_classes=NUM_CLASSES, ignore_label=v) for v in (None, -100))
    assert torch.equal(none(output, labels)[0], minus(output, labels)[0])
    marked = labels.clone()
    marked[:, 0] = -100
    assert minus(output, marked)[0].isfinite()
    with pytest.raises(JointError, match=r"labels hold -100 .* from 0 to 2, and no other"):
        none(output, marked)
    marked[:, 0] = 156
    with pytest.raises(JointError, match="labels hold 156"):
        minus(output, marked.to(torch.uint8))


@every_loss
def test_a_loss_is_copied_and_pickled_after_a_call(case):
    loss, (output, labels) = case.build(), case.inputs(batch=2)
    value = loss(output, labels)[0]
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(output, labels)[0], value)


def test_on_a_gpu_wrong_values_are_an_error_of_the_next_call_and_count_for_nothing_until_then(monkeypatch):
    """The tensors stay on the CPU here; what is asked of the device is recorded."""

    class Copied:
        def synchronize(self):
            waited.append(self)

    waited = []
    monkeypatch.setattr(inputs, "is_queued", lambda _: True)
    monkeypatch.setattr(inputs, "to_pinned", lambda seen: (seen.clone(), Copied()))
    (case,) = [c.values[0] for c in cases("loss") if c.id == "ce_dice"]
    loss, (output, labels) = case.build(), case.inputs(batch=2)
    wrong, ignored = labels.clone(), labels.clone()
    wrong[:, 0], ignored[:, 0] = 255, IGNORE
    with pytest.raises(JointError, match="labels hold 255"):
        loss(output, wrong)  # the first call is judged at once
    expected = loss(output, ignored)[0]
    assert torch.equal(loss(output, wrong)[0], expected)
    copy.deepcopy(loss)(output, labels)
    with pytest.raises(JointError, match="labels hold 255"):
        loss(output, labels)
    assert torch.equal(loss(output, ignored)[0], expected)
    assert len(waited) == 2
