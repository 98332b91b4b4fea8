"""Every backbone x {pointwise, masked_query} x {skip, fsad}: builds, trains one step with every parameter touched, and
predicts. The matrix is that of docs/benchmarks/backbones.py, with smaller networks."""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from maskmed_zoo.build import model_of
from maskmed_zoo.model import build_loss

SCRIPT = Path(__file__).resolve().parents[1] / "docs/benchmarks/backbones.py"
SMALL = {
    "resnet18": "test_resnet",
    "convnext_atto": "test_convnext",
    "efficientnetv2_rw_t": "test_efficientnet",
    "vit_tiny_patch16_224": "test_vit",
}
PATCH = (32, 32, 64)  # two voxels at a stride of 32


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("backbones", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CHANNELS[:] = [4, 8, 16, 32]
    for encoder, _ in module.BACKBONES.values():
        if encoder["kind"] == "swin_unetr":
            encoder |= {"depths": [1, 1, 1, 1], "window_size": 3}
        if "backbone" in encoder:
            encoder["backbone"] = SMALL.get(encoder["backbone"], encoder["backbone"])
        if encoder["kind"] == "unetr":
            encoder |= {"img_size": list(PATCH), "width": 24}
        if encoder.get("network") == "SegResNet":
            encoder["arguments"]["init_filters"] = 8
    return module


MATRIX = load_script()


def test_the_matrix_is_as_large_as_promised():
    encoders = [encoder for encoder, _ in MATRIX.BACKBONES.values()]
    kinds = [encoder["kind"] for encoder in encoders]
    assert len(encoders) >= 12
    assert sum(kind in ("monai", "swin_unetr", "unetr", "mednext") for kind in kinds) >= 6
    assert kinds.count("timm") >= 5
    assert {"plain_conv", "residual"} <= set(kinds)
    assert set(MATRIX.NECKS) == {"skip", "fsad"}
    assert set(MATRIX.HEADS) == {"pointwise", "masked_query"}


@pytest.mark.parametrize(("backbone", "neck", "head"), [*product(MATRIX.BACKBONES, MATRIX.NECKS, MATRIX.HEADS)])
def test_builds_trains_and_predicts(backbone, neck, head):
    torch.manual_seed(0)
    cell = MATRIX.recipe(backbone, neck, head, PATCH)
    model = model_of(cell).train()
    loss = build_loss(cell.model, num_classes=3, ignore_label=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    image, labels = MATRIX.example(PATCH)
    touched: set[str] = set()
    for _ in range(2):  # the second, since timm starts the last norm of a residual block at zero
        optimizer.zero_grad()
        value, _ = loss(model(image), labels)
        value.backward()
        without = [name for name, p in model.named_parameters() if p.grad is None and not is_unsupervised(cell, name)]
        assert not without
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        touched |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.count_nonzero()}
        optimizer.step()
    assert len(touched) >= 0.9 * len([*model.parameters()])  # the gradient of a bias before a norm may be exactly zero
    with torch.inference_mode():
        log_probabilities = model.eval().predict(image)
    assert log_probabilities.shape == (1, 3, *PATCH)
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(1, *PATCH))


def is_unsupervised(cell, name):
    """nnU-Net's loss gives the lowest stage no weight, so that stage's projection learns nothing."""
    return cell.model.loss.kind == "ce_dice" and name.startswith("head.projections.")
