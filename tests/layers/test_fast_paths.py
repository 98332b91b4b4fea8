"""What the layers compute in another way than PyTorch's plain ops gives the same numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskmed_zoo.layers.conv import ConvNormAct, InstanceNorm
from maskmed_zoo.layers.pool import average_to
from maskmed_zoo.layers.rows import rows
from maskmed_zoo.layers.transformer import MultiHeadAttention


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_instance_norm(mean, layout):
    torch.manual_seed(0)
    norm = InstanceNorm(6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = (torch.randn(2, 6, 5, 7, 3) + mean).to(memory_format=layout).requires_grad_()
    found, due = norm(x), F.instance_norm(x.double(), weight=norm.weight.double(), bias=norm.bias.double(), eps=1e-5)
    torch.testing.assert_close(found.double(), due, rtol=1e-4, atol=1e-4 if mean else 1e-5)
    assert found.is_contiguous(memory_format=layout)
    upper = torch.randn_like(found)
    leaves = [x, norm.weight, norm.bias]
    for a, b in zip(
        torch.autograd.grad(found, leaves, upper), torch.autograd.grad(due, leaves, upper.double()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 if mean else 1e-5)


def test_an_activation_overwrites_nothing_that_another_needs():
    torch.manual_seed(0)
    block, x = ConvNormAct(3, 4, (3, 3, 3)), torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    before = x.detach().clone()
    found = block(x)
    due = F.leaky_relu(F.instance_norm(block.conv(x), weight=block.norm.weight, bias=block.norm.bias), 0.01)
    torch.testing.assert_close(found, due)
    torch.testing.assert_close(
        *(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, due)), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize("part", ["conv", "norm", "activation"])
def test_parts_take_backward_hooks(part):
    torch.manual_seed(0)
    block, x, seen = ConvNormAct(3, 4, (3, 3, 3)), torch.randn(2, 3, 4, 4, 4, requires_grad=True), []
    (due,) = torch.autograd.grad(block(x).square().sum(), x)
    getattr(block, part).register_full_backward_hook(lambda _, into, out: seen.append((into, out)))
    torch.testing.assert_close(torch.autograd.grad(block(x).square().sum(), x)[0], due)
    assert len(seen) == 1


@pytest.mark.parametrize("grid", [(4, 3, 6), (2, 3, 1), (8, 9, 6), (4, 4, 3)])
def test_average(grid):
    x = torch.randn(2, 3, 8, 9, 6, dtype=torch.float64, requires_grad=True)
    found, due = average_to(x, grid), F.adaptive_avg_pool3d(x, grid)
    torch.testing.assert_close(found, due)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, due)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_rows_give_gradients_that_lie_as_the_map_does(layout):
    x = torch.randn(2, 3, 2, 4, 5).to(memory_format=layout).requires_grad_()
    found, upper = rows(x), torch.randn(2, 40, 3)
    assert torch.equal(found, x.flatten(2).transpose(1, 2))
    (grad,) = torch.autograd.grad(found, x, upper)
    assert grad.is_contiguous(memory_format=layout)
    assert torch.equal(grad.flatten(2).transpose(1, 2), upper)


@pytest.mark.parametrize("kind", ["none", "hard", "soft"])
def test_few_queries_attend_as_many_do(kind):
    torch.manual_seed(0)
    attention = MultiHeadAttention(12, 3).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    query, key, value = (torch.randn(2, n, 12, dtype=torch.float64, requires_grad=True) for n in (4, 9, 9))
    allowed = torch.rand(2, 4, 9) > 0.5
    allowed[..., 0] = True
    mask = {"none": None, "hard": allowed, "soft": torch.randn(2, 4, 9)}[kind]
    found = attention(query, key, value, mask)
    twice = torch.cat([query, query], 1)  # of eight queries the projections are not moved
    due = attention(twice, key, value, None if mask is None else torch.cat([mask, mask], 1))[:, :4]
    torch.testing.assert_close(found, due)
    leaves = [query, key, value, attention.key.weight, attention.value.weight, attention.value.bias]
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, due)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
