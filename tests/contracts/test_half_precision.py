"""One contract for every registered component: with 16-bit weights it says nearly what it says with 32 bits."""

from __future__ import annotations

import copy

import pytest
import torch

import maskmed_zoo
from maskmed_zoo import registry
from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError
from tests.contracts.test_components import NUM_CLASSES, as_dtype, cases, every_network, perturb, tensors

NARROW = (torch.bfloat16, torch.float16)
MASKMED = ("maskmed_hippocampus_cpu", "set_criterion")


@every_network
def test_16_bit_weights_give_nearly_the_same_with_and_without_autocast(case):
    component, inputs = perturb(case.build()).eval(), case.inputs()
    with torch.inference_mode():
        expected = tensors(component(*inputs))
        for dtype in NARROW:
            narrow = component.to(dtype)
            for is_autocast in (False, True):
                with torch.autocast("cpu", dtype, enabled=is_autocast):
                    output = tensors(narrow(*as_dtype(inputs, dtype)))
                for x, wanted in zip(output, expected, strict=True):
                    assert x.dtype == dtype
                    assert (x.float() - wanted).norm() <= 0.1 * wanted.norm(), (dtype, is_autocast)


@every_network
def test_16_bit_weights_can_be_trained(case, monkeypatch):
    # Without the CPU's instructions for it, oneDNN's gradient of a bfloat16 convolution reads memory nobody wrote.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    component, (inputs,) = perturb(case.build()).bfloat16(), as_dtype(case.inputs(), torch.bfloat16)
    leaves = [x.requires_grad_() for x in tensors(inputs)]
    output = tensors(component(inputs))
    sum(x.float().square().mean() for x in output).backward()  # pyright: ignore[reportAttributeAccessIssue]
    gradients = [x.grad for x in [*leaves, *component.parameters()] if x.grad is not None]
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients)
    assert len(gradients) >= 0.8 * (len(leaves) + len(list(component.parameters())))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("case", cases("loss"))
def test_losses_of_16_bit_outputs_are_computed_in_32_bits(case, dtype):
    """Whether or not the loss itself was moved to 16 bits, as a part of a larger module is."""
    output, labels = case.inputs(batch=2)
    for x in tensors(output):
        x.data = x.data.to(dtype)
    in_32_bits = HeadOutput(
        [StageOutput(**{k: v.float() for k, v in vars(s).items() if v is not None}) for s in output.stages]
    )
    annotated = torch.ones(2, NUM_CLASSES, dtype=torch.bool)
    annotated[0, 1] = False
    leaves = [x.requires_grad_() for x in tensors(output)]
    for loss in (case.build(), case.build().to(dtype)):
        for more in ({}, {"annotated": annotated}):
            torch.manual_seed(0)
            value, _ = loss(output, labels, **more)
            torch.manual_seed(0)
            assert value.dtype == torch.float32
            assert torch.equal(value, case.build()(in_32_bits, labels, **more)[0])
            found = torch.autograd.grad(value, leaves, allow_unused=True)
            assert all(g is None or g.isfinite().all() for g in found)


@pytest.fixture(scope="module", params=[("pointwise_hippocampus_cpu", "ce_dice"), MASKMED], ids=lambda p: p[0])
def learnt(request):
    """A small model of a recipe that has learnt three labels, an image and what it says of it."""
    recipe, loss_name = request.param
    torch.manual_seed(0)
    model = maskmed_zoo.create(recipe, model__encoder__channels=[4, 8, 16], data__patch_size=[16, 16, 16])
    loss = registry.component(loss_name, "loss")(num_classes=3)
    labels = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    labels[:, :8, :, :9], labels[:, 10:, 4:] = 1, 2
    image = torch.randn(1, 1, 16, 16, 16) + 4 * labels[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss(model(image), labels)[0].backward()
        optimizer.step()
    with torch.inference_mode():
        found = model.eval().predict(image).argmax(1)
    assert (found == labels).float().mean() > 0.9
    return model, image, found


@pytest.mark.parametrize("dtype", NARROW)
def test_a_whole_model_finds_the_same_labels(learnt, dtype):
    model, image, expected = learnt
    model = copy.deepcopy(model).to(dtype)
    with torch.inference_mode():
        found = model.predict(image.to(dtype))
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert (found.argmax(1) == expected).float().mean() > 0.99
        with pytest.raises(JointError, match=rf"the image is torch.float32, .* {dtype}; give image.to\({dtype}\)"):
            model.predict(image)
        with torch.autocast("cpu", dtype):
            assert (model.predict(image).argmax(1) == expected).float().mean() > 0.99
