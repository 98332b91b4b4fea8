"""Sums written by hand against plain PyTorch in float64, their gradients by `gradcheck`, pieces against the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from maskmed_zoo.losses import fused
from maskmed_zoo.losses.fused import cache_sized, dense_sums, mask_sums, softplus

SAMPLE, QUERY, TARGET = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 3]), torch.tensor([1, 0, 1])


def masks(seed=0, voxels=30):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, voxels, generator=generator, dtype=torch.float64) * 3
    return logits, torch.rand(2, 2, voxels, generator=generator) < 0.4, torch.rand(2, voxels, generator=generator) < 0.8


def plain_mask_sums(logits, targets, valid):
    x, t = logits[SAMPLE, QUERY], targets[SAMPLE, TARGET].to(logits.dtype)
    kept = torch.ones_like(t) if valid is None else valid[SAMPLE].to(t.dtype)
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return (bce * kept).sum(-1), (x.sigmoid() * t * kept).sum(-1), (x.sigmoid() * kept).sum(-1)


def gradient(sums: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Of a number in which every element of every sum has another part."""
    return torch.autograd.grad(torch.cat([(i + 1) * s.flatten().square() for i, s in enumerate(sums)]).sum(), x)[0]


def labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 30, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(4, (2, 30), generator=generator)
    target[1][target[1] == 2] = 0  # a label that one sample lacks
    return logits, target, torch.rand(2, 30, generator=generator) < 0.8


def plain_dense_sums(logits, target, valid):
    kept = torch.ones_like(target, dtype=logits.dtype) if valid is None else valid.to(logits.dtype)
    p, hot = logits.softmax(1), F.one_hot(target, 4).movedim(-1, 1) * kept.unsqueeze(1)
    ce = (F.cross_entropy(logits, target, reduction="none") * kept).sum()
    return ce, (p * hot).sum(-1), (p * kept.unsqueeze(1)).sum(-1), hot.sum(-1)


@pytest.mark.parametrize("is_partly_valid", [False, True])
@pytest.mark.parametrize("chunk", [1, 1 << 19])
def test_mask_sums(monkeypatch, chunk, is_partly_valid):
    monkeypatch.setattr(fused, "CHUNK", chunk)
    logits, targets, valid = masks()
    valid = valid if is_partly_valid else None
    logits.requires_grad_()
    found, due = mask_sums(logits, targets, (SAMPLE, QUERY, TARGET), valid), plain_mask_sums(logits, targets, valid)
    for a, b in zip(found, due, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(gradient(sums, logits) for sums in (found, due)))
    assert torch.autograd.gradcheck(lambda x: mask_sums(x, targets, (SAMPLE, QUERY, TARGET), valid), logits)


@pytest.mark.parametrize("is_partly_valid", [False, True])
def test_dense_sums(is_partly_valid):
    logits, target, valid = labels()
    valid = valid if is_partly_valid else None
    logits.requires_grad_()
    found, due = dense_sums(logits, target, valid), plain_dense_sums(logits, target, valid)
    for a, b in zip(found, due, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(gradient(sums[:3], logits) for sums in (found, due)))
    assert torch.autograd.gradcheck(lambda x: dense_sums(x, target, valid)[:3], logits)


def test_a_label_without_probability_gives_no_nan():
    logits, target, _ = labels()
    target[target == 3] = 0
    logits[:, 3] = -torch.inf  # as of a label that is not annotated
    logits.requires_grad_()
    ce, overlap, size, _ = dense_sums(logits, target, None)
    (grad,) = torch.autograd.grad(ce + overlap.sum() + size[:, 1:].sum(), logits)
    assert grad.isfinite().all()
    assert (grad[:, 3] == 0).all()


def test_gradients_come_in_the_type_of_the_maps():
    logits, targets, _ = masks()
    for dtype in (torch.bfloat16, torch.float16):
        low = logits.to(dtype).requires_grad_()
        sums = mask_sums(low, targets, (SAMPLE, QUERY, TARGET), None)
        assert {x.dtype for x in sums} == {torch.float32}
        assert gradient(sums, low).dtype == dtype


def test_softplus_keeps_its_precision_at_both_ends():
    x = torch.tensor([-torch.inf, -80.0, -20.0, -1e-3, 0.0, 1e-3, 3.0, 20.0, 80.0, torch.inf])
    torch.testing.assert_close(softplus(x).double(), F.softplus(x.double(), threshold=1000), rtol=3e-7, atol=0)
    assert softplus(torch.tensor([torch.nan])).isnan().all()


def test_pieces_cover_everything_once():
    for count, each in ((5, fused.CHUNK // 2), (3, 10 * fused.CHUNK), (7, 1), (0, 4)):
        pieces = cache_sized(count, each, torch.device("cpu"))
        assert pieces
        assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
