"""A plan as nnU-Net v2 writes it, small, and the network it stands for, built by nnU-Net's own package."""

from __future__ import annotations

import pydoc
from typing import Any

import torch
from torch import nn

DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "left": 1, "right": 2},
    "file_ending": ".nii.gz",
}


def configuration(kind: str = "PlainConvUNet") -> dict[str, Any]:
    """Anisotropic, with another number of convolutions in every stage of the decoder."""
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "batch_size": 3,
        "patch_size": [8, 32, 16],
        "spacing": [3.0, 1.0, 1.0],
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": {
                "n_stages": 4,
                "features_per_stage": [4, 6, 8, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
                "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 1]],
                blocks: [2, 1, 2, 1],
                "n_conv_per_stage_decoder": [3, 2, 1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def network(plan: dict[str, Any], channels: int, classes: int) -> nn.Module:
    """With random weights, norms included."""
    from dynamic_network_architectures.architectures import unet

    architecture = plan["architecture"]
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        arguments[name] = None if arguments[name] is None else pydoc.locate(arguments[name])
    cls = getattr(unet, architecture["network_class_name"].rsplit(".", 1)[-1])
    built = cls(input_channels=channels, num_classes=classes, deep_supervision=True, **arguments)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built.eval()
