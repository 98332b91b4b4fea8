"""The exported runner in a bare environment, and which networks can be exported at all.

The environment holds numpy, scipy, nibabel and onnxruntime from the package index and nothing else, 250 MB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo.build import model_of
from maskmed_zoo.encoders.monai import NETWORKS
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.export.export import export
from maskmed_zoo.export.onnx_graph import Session, write_graph
from maskmed_zoo.export.program import check, program_of
from maskmed_zoo.recipe.schema import recipe_type
from maskmed_zoo.runner.run_folder import RunFolder
from tests.conftest import SHARED_DATA, make_dataset

NEEDS = ("numpy", "scipy", "nibabel", "onnxruntime")
WIDTH = {"width": 12, "attention_heads": 2}
BASE = {
    "encoder": {"kind": "plain_conv", "channels": [4, 8, 8], "blocks": 1},
    "neck": {"kind": "skip"},
    "decoder": {"kind": "unet", "blocks": 1},
    "head": {"kind": "pointwise"},
    "loss": {"kind": "ce_dice"},
}
HEADS = {
    "pointwise": {"kind": "pointwise"},
    "learned_class": {"kind": "learned_class"},
    "attention_class": {"kind": "attention_class", **WIDTH},
    "attention_mask_class": {"kind": "attention_mask_class", **WIDTH},
    "masked_query": {"kind": "masked_query", **WIDTH},
}
NECKS = {
    "skip": {"kind": "skip"},
    "transformer": {"kind": "transformer", "query_levels": 1, **WIDTH},
    "deformable": {"kind": "deformable", "query_levels": 1, "points": 2, **WIDTH},
    "fsad": {"kind": "fsad", "query_levels": 2, "points": 2, **WIDTH},
}
UNETR_UP = {"kind": "unetr_up", "stages": 1}


def monai(network, **arguments):
    return {"encoder": {"kind": "monai", "network": network, "arguments": arguments}}


def timm(backbone, **settings):
    return {"encoder": {"kind": "timm", "backbone": backbone, **settings}}


ENCODERS = {
    "residual": ({"encoder": {"kind": "residual", "channels": [4, 8, 8], "blocks": 1}}, (8, 16, 16)),
    "fpn": ({"decoder": {"kind": "fpn"}}, (8, 16, 16)),
    "mednext": (
        {"encoder": {"kind": "mednext", "variant": "S"}, "decoder": {"kind": "mednext_up", "variant": "S"}},
        (32, 32, 32),
    ),
    "swin_unetr": (
        {
            "encoder": {
                "kind": "swin_unetr", "feature_size": 12, "depths": [2, 1, 1, 1], "attention_heads": 1, "window_size": 3
            },
            "decoder": UNETR_UP,
        },
        (64, 64, 64),
    ),
    "unetr": (
        {
            "encoder": {"kind": "unetr", "img_size": [16, 32, 32], "feature_size": 4, **WIDTH},
            "decoder": UNETR_UP,
        },
        (16, 32, 32),
    ),
    "ux_net": (
        {"encoder": {"kind": "ux_net", "feature_size": 8, "depths": [1, 1, 1, 1]}, "decoder": UNETR_UP},
        (64, 64, 64),
    ),
    "SegResNet": (monai("SegResNet", init_filters=8), (16, 32, 32)),
    "DynUNet": (
        monai("DynUNet", kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 8, 8]),
        (16, 32, 32),
    ),
    "UNet": (monai("UNet", channels=[4, 8, 8], strides=[2, 2]), (16, 32, 32)),
    "AttentionUnet": (monai("AttentionUnet", channels=[4, 8, 8], strides=[2, 2]), (16, 32, 32)),
    "BasicUNet": (monai("BasicUNet", features=[4, 4, 8, 8, 8, 4]), (16, 32, 32)),
    "VNet": (monai("VNet"), (32, 32, 32)),
    "SegResNetDS": (monai("SegResNetDS", init_filters=8), (16, 32, 32)),
    "MedNeXt": (monai("MedNeXt", init_filters=4), (32, 32, 32)),
    "FlexibleUNet": (monai("FlexibleUNet", backbone="resnet10"), (64, 64, 64)),
    "timm convnext": (timm("test_convnext"), (64, 64, 64)),
    "timm resnet": (timm("test_resnet"), (64, 64, 64)),
    "timm efficientnet": (timm("test_efficientnet"), (64, 64, 64)),
    "timm vit": (timm("test_vit"), (64, 64, 64)),
    "timm resnet, slices": (timm("test_resnet", mode="slices", slab=3), (8, 64, 64)),
}  # fmt: skip
REFUSED = {
    "SwinUNETR": (monai("SwinUNETR", feature_size=12, depths=[1, 1, 1, 1], window_size=3), (64, 64, 64)),
}
"""Networks of MONAI whose own code the exporter cannot follow: a check of the input's size, in NumPy."""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment with what the runner needs."""
    environment = tmp_path_factory.mktemp("environment") / "bare"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    words = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *NEEDS]
    installed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    yield python
    shutil.rmtree(environment)


@pytest.mark.parametrize("is_real", [False, True])
def test_the_runner_in_a_bare_environment(is_real, python, tmp_path):
    if is_real and not SHARED_DATA.is_dir():
        pytest.skip("no real data beside the checkout")
    data, run = make_dataset(tmp_path / "data", cases=5), Path(__file__).parents[1] / "runner/earlier_run"
    images = sorted((data / "imagesTr").iterdir())
    if is_real:
        data = SHARED_DATA / "Dataset004_Hippocampus"
        images = sorted((data / "imagesTr").iterdir())[:5]
        run = zoo.train("maskmed_hippocampus_cpu", data=data, out=tmp_path / "run", device="cpu", train__epochs=1,
                        train__iterations_per_epoch=60, train__validation_iterations=1)  # fmt: skip
    zoo.load(run, device="cpu").files(images, tmp_path / "theirs")
    export(RunFolder(Path(run)), tmp_path / "exported", license="unknown", format="onnx")
    (tmp_path / "alone").mkdir()
    for name in ("network.onnx", "pipeline.json", "predict_onnx.py"):
        shutil.copy(tmp_path / "exported" / name, tmp_path / "alone")
    words = [python, "-I", tmp_path / "alone/predict_onnx.py", *images, tmp_path / "ours"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    voxels, wrong = 0, 0
    for path in sorted((tmp_path / "theirs").glob("*.nii.gz")):
        expected, found = (np.asarray(nib.load(tmp_path / who / path.name).dataobj) for who in ("theirs", "ours"))
        assert len(np.unique(expected)) > 1
        voxels, wrong = voxels + expected.size, wrong + int((expected != found).sum())
    assert voxels
    assert wrong / voxels <= 1e-4


def exported(parts, patch, tmp_path):
    """Export a network with random weights in both formats; each has to say what the network says."""
    torch.manual_seed(0)
    content = {"schema_version": 1, "name": "made", "model": BASE | parts, "train": {}, "inference": {}}
    content["data"] = {"channels": ["CT", "MR"], "labels": {"background": 0, "a": 1, "b": 2}}
    content["data"] |= {"spacing": [1, 1, 1], "patch_size": patch}
    model = model_of(recipe_type().model_validate(content)).eval()
    with torch.no_grad():  # what begins at zero would hide what stands before it
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    program = program_of(model, patch)
    torch.export.save(program, tmp_path / "network.pt2")
    check(torch.export.load(tmp_path / "network.pt2").module(), model, patch, "network.pt2")
    write_graph(program, tmp_path / "network.onnx", fp16=False)
    check(Session(tmp_path / "network.onnx"), model, patch, "network.onnx")


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_with_every_neck(head, neck, tmp_path):
    assert set(HEADS) == set(zoo.list(kind="head"))
    assert set(NECKS) == set(zoo.list(kind="neck"))
    loss = {"kind": "set_criterion" if head == "masked_query" else "ce_dice"}
    exported({"head": HEADS[head], "neck": NECKS[neck], "loss": loss}, (8, 16, 16), tmp_path)


def test_every_encoder_and_decoder_is_here():
    for kind in ("encoder", "decoder"):
        used = {(BASE | parts)[kind]["kind"] for parts, _ in ENCODERS.values()} | {BASE[kind]["kind"]}
        assert used == set(zoo.list(kind=kind))
    assert set(NETWORKS) <= {*ENCODERS, *REFUSED}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_and_decoders(name, tmp_path):
    parts, patch = ENCODERS[name]
    exported(parts, patch, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    parts, patch = REFUSED[name]
    with pytest.raises(ArgumentError, match=r"cannot be exported as 'torch' \(Unsupported: .*export it as 'weights'"):
        exported(parts, patch, tmp_path)
