"""Every backbone with both heads and both necks: parameters, multiplications and seconds per training step.

    python docs/benchmarks/backbones.py --machine "2 CPU cores (AVX2)"

Writes `backbones.csv` beside this file; docs/generate.py makes the table of it. The networks are narrow ones, but for
timm's, which are those of the given name. The tests build, train and run the same matrix with smaller networks.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from maskmed_zoo.build import model_of, network_facts
from maskmed_zoo.model import SegmentationModel, build_loss
from maskmed_zoo.recipe import Recipe, recipe_type

HERE = Path(__file__).resolve().parent
PATCH = (32, 64, 64)
STEPS = 2
CHANNELS = [16, 32, 64, 128]
UNET = {"kind": "unet", "blocks": 1}


def monai(network: str, **arguments: Any) -> dict[str, Any]:
    """Settings of the encoder `monai`."""
    return {"kind": "monai", "network": network, "arguments": arguments}


def timm(backbone: str, **settings: Any) -> dict[str, Any]:
    """Settings of the encoder `timm`."""
    return {"kind": "timm", "backbone": backbone, **settings}


# Name: encoder and decoder.
BACKBONES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nnU-Net plain": ({"kind": "plain_conv", "channels": CHANNELS}, UNET),
    "nnU-Net residual": ({"kind": "residual", "channels": CHANNELS, "blocks": 1}, UNET),
    "Swin UNETR": ({"kind": "swin_unetr", "feature_size": 12}, {"kind": "unetr_up"}),
    "SwinUNETR-V2": ({"kind": "swin_unetr", "feature_size": 12, "version": "v2"}, {"kind": "unetr_up"}),
    "UNETR": (
        {"kind": "unetr", "img_size": list(PATCH), "feature_size": 8, "width": 96, "attention_heads": 4},
        {"kind": "unetr_up"},
    ),
    "MedNeXt-S": ({"kind": "mednext", "feature_size": 8}, {"kind": "mednext_up"}),
    "MONAI SegResNet": (monai("SegResNet", init_filters=16), UNET),
    "MONAI DynUNet": (
        monai("DynUNet", kernel_size=[3] * 4, strides=[1, 2, 2, 2], upsample_kernel_size=[2] * 3, filters=CHANNELS),
        UNET,
    ),
    "MONAI UNet": (monai("UNet", channels=CHANNELS, strides=[2, 2, 2], num_res_units=1), UNET),
    "MONAI BasicUNet": (monai("BasicUNet", features=[16, 16, 32, 64, 128, 16]), UNET),
    "MONAI AttentionUnet": (monai("AttentionUnet", channels=CHANNELS, strides=[2, 2, 2]), UNET),
    "MONAI FlexibleUNet": (monai("FlexibleUNet", backbone="resnet10"), UNET),
    "timm ResNet": (timm("resnet18"), UNET),
    "timm ConvNeXt": (timm("convnext_atto"), UNET),
    "timm EfficientNetV2": (timm("efficientnetv2_rw_t"), UNET),
    "timm ViT": (timm("vit_tiny_patch16_224"), UNET),
    "timm Swin": (timm("swin_tiny_patch4_window7_224"), UNET),
    "timm ResNet, 2.5-D": (timm("resnet18", mode="slices", slab=3), UNET),
}
NECKS: dict[str, dict[str, Any]] = {
    "skip": {"kind": "skip"},
    "fsad": {"kind": "fsad", "query_levels": 2, "width": 48, "attention_heads": 4},
}
HEADS: dict[str, tuple[dict[str, Any], str]] = {  # with the loss each needs
    "pointwise": ({"kind": "pointwise"}, "ce_dice"),
    "masked_query": ({"kind": "masked_query", "width": 48, "attention_heads": 4}, "set_criterion"),
}


def recipe(backbone: str, neck: str, head: str, patch: tuple[int, int, int] = PATCH) -> Recipe:
    """A cell of the matrix."""
    encoder, decoder = BACKBONES[backbone]
    head_settings, loss = HEADS[head]
    model = {"encoder": encoder, "neck": NECKS[neck], "decoder": decoder, "head": head_settings, "loss": {"kind": loss}}
    data = {"channels": ["CT"], "labels": {"background": 0, "left": 1, "right": 2}, "spacing": [1.0, 1.0, 1.0],
            "patch_size": list(patch)}  # fmt: skip
    return recipe_type().model_validate(
        {"schema_version": 1, "name": "cell", "model": model, "data": data, "train": {}, "inference": {}}
    )


def example(patch: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (1 1 d h w) of noise with two boxes in it, and their labels (1 d h w)."""
    d, h, w = patch
    labels = torch.zeros(1, *patch, dtype=torch.long)
    labels[:, d // 4 : d // 2, h // 4 : h // 2, w // 8 : w // 2] = 1
    labels[:, d // 4 : d // 2, h // 2 : 3 * h // 4, w // 2 : 7 * w // 8] = 2
    return torch.randn(1, 1, *patch) + 3 * labels.unsqueeze(1), labels


def seconds_per_step(cell: Recipe, model: SegmentationModel) -> float:
    """Mean over `STEPS` training steps of batch 1, after one that is not counted."""
    loss = build_loss(cell.model, num_classes=model.num_classes, ignore_label=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    image, labels = example(PATCH)
    taken: list[float] = []
    for _ in range(STEPS + 1):
        start = time.process_time()
        optimizer.zero_grad()
        loss(model(image), labels)[0].backward()
        optimizer.step()
        taken.append(time.process_time() - start)
    return statistics.mean(taken[1:])


def main() -> None:
    """Measure every cell and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), metavar="TEXT")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for backbone in BACKBONES:
        for neck in NECKS:
            for head in HEADS:
                torch.manual_seed(0)
                cell = recipe(backbone, neck, head)
                facts = network_facts(cell)
                row = {
                    "backbone": backbone,
                    "encoder": facts["components"]["encoder"],
                    "decoder": facts["components"]["decoder"],
                    "neck": neck,
                    "head": head,
                    "levels": len(facts["levels"]),
                    "parameters": facts["total_parameters"],
                    "macs": facts["macs"],
                    "cpu_seconds_per_step": round(seconds_per_step(cell, model_of(cell).train()), 2),
                    "patch": "x".join(map(str, PATCH)),
                    "machine": args.machine,
                    "torch": torch.__version__,
                    "date": time.strftime("%Y-%m-%d"),
                }
                rows.append(row)
                print(*row.values(), sep="  ", flush=True)
    with (HERE / "backbones.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
