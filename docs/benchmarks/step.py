"""What a training step costs against nnU-Net's own: nnU-Net's trainer, its point-wise twin here, MaskMed.

    python docs/benchmarks/step.py                     # ten minutes on one core; writes step.csv
    python docs/benchmarks/step.py --plan hippocampus --rounds 7 --no-csv

Needs `nnunetv2` beside this package and no data set: images are noise, labels are boxes. Every candidate trains on the
same plan, patch, batch and labels in one process: nnU-Net by `nnUNetTrainer.train_step`, the others by `Trainer.step`,
so that forward, loss, backward, gradient clipping and the optimizer (SGD with Nesterov momentum for all) are counted,
and the batch is not. nnU-Net gets the labels of coarser stages with the batch, as from its data loader; ours makes
them itself. Candidates take turns, one step each, so that other work on the machine weighs on all alike; the ratio is
the median over rounds of the ratios within a round. CPU-seconds are those of the process.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import Row, machine, write

FOLDER = Path(__file__).resolve().parent
PLANS: dict[str, dict[str, Any]] = {
    # nnU-Net's own plan of Dataset004_Hippocampus, at batch 2
    "hippocampus": {
        "recipe": "maskmed_hippocampus",
        "labels": 3,
        "patch": (40, 56, 40),
        "channels": (32, 64, 128, 256),
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        "rounds": 9,
    },
    # the levels of nnU-Net's plans for CT of the abdomen, on a patch that one core takes in seconds
    "abdomen": {
        "recipe": "maskmed_amos",
        "labels": 16,
        "patch": (64, 64, 64),
        "channels": (32, 64, 128, 256, 320, 320),
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        "rounds": 4,
    },
}


def configuration(plan: dict[str, Any]) -> dict[str, Any]:
    """The entry `3d_fullres` of an nnUNetPlans.json."""
    levels = len(plan["channels"])
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(plan["patch"]),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": levels,
                "features_per_stage": list(plan["channels"]),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * levels,
                "strides": [list(stride) for stride in plan["strides"]],
                "n_conv_per_stage": [2] * levels,
                "n_conv_per_stage_decoder": [2] * (levels - 1),
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
        "batch_dice": False,
    }


def labels_of(plan: dict[str, Any]) -> dict[str, int]:
    return {"background": 0} | {f"label{k}": k for k in range(1, plan["labels"])}


def batch(plan: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (2 1 d h w), and labels (2 d h w) of one box each, about a twentieth of the patch large."""
    generator = torch.Generator().manual_seed(0)
    patch = plan["patch"]
    labels = torch.zeros(2, *patch, dtype=torch.int64)
    for sample in labels:
        for label in range(1, plan["labels"]):
            start = [int(torch.randint(n - n // 3, (), generator=generator)) for n in patch]
            z, y, x = (slice(s, s + n // 3) for s, n in zip(start, patch, strict=True))
            sample[z, y, x] = label
    return torch.randn(2, 1, *patch, generator=generator), labels


def nnunet_step(plan: dict[str, Any], work: Path) -> Callable[[], object]:
    """`train_step` of nnU-Net's default trainer on the CPU, its batch as its own loader gives it."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ["NNUNET_COMPILE"] = "f"
    # The folders are read on import. Which data set it is, the trainer tells by a file of it.
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    whole = {
        "dataset_name": "Dataset999_Step",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration(plan)},
        "continue_training": False,
    }
    cases = work / "preprocessed" / "Dataset999_Step" / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True, exist_ok=True)
    (cases / "case.b2nd").touch()
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels_of(plan), "file_ending": ".nii.gz", "numTraining": 1}
    torch.manual_seed(0)
    trainer: Any = nnUNetTrainer(whole, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.network.train()
    image, labels = batch(plan)
    target = labels.unsqueeze(1).to(torch.int16)
    targets = [
        torch.nn.functional.interpolate(target.float(), scale_factor=tuple(scale), mode="nearest-exact").to(
            target.dtype
        )
        for scale in trainer._get_deep_supervision_scales()
    ]
    return lambda: trainer.train_step({"data": image, "target": targets})


def our_step(plan: dict[str, Any], twin: bool, **overrides: Any) -> Callable[[], object]:
    """`Trainer.step` of the recipe on the plan's levels."""
    import maskmed_zoo as zoo
    from maskmed_zoo.recipe.nnunet_plan import recipe_of_plan
    from maskmed_zoo.runner.trainer import Trainer

    dataset = {"channel_names": {"0": "MRI"}, "labels": labels_of(plan)}
    sgd = {"train.optimizer.kind": "sgd", "train.optimizer.momentum": 0.99, "train.amp": "off"}
    recipe = zoo.load_recipe(plan["recipe"], sgd | overrides)
    trainer = Trainer(recipe_of_plan(recipe, configuration(plan), dataset=dataset, twin=twin), torch.device("cpu"))
    image, labels = batch(plan)
    return lambda: trainer.step(image, labels)


def measured(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every step; a first round, which allocates, is thrown away."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            took = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                times[name].append(took)
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    return [round(x, 3) for x in statistics.quantiles(values, n=4, method="inclusive")]


def rows_of(name: str, plan: dict[str, Any], times: dict[str, list[tuple[float, float]]]) -> list[Row]:
    base = [cpu for cpu, _ in times["nnunet"]]
    rows: list[Row] = []
    for candidate, taken in times.items():
        cpu, wall = zip(*taken, strict=True)
        low, middle, high = quartiles(cpu)
        ratio = quartiles([a / b for a, b in zip(cpu, base, strict=True)])
        rows.append(
            {
                "plan": name,
                "patch": "x".join(map(str, plan["patch"])),
                "levels": "-".join(map(str, plan["channels"])),
                "labels": plan["labels"],
                "batch": 2,
                "step": candidate,
                "rounds": len(taken),
                "cpu_seconds": middle,
                "cpu_q1": low,
                "cpu_q3": high,
                "wall_seconds": quartiles(wall)[1],
                "ratio": ratio[1],
                "ratio_q1": ratio[0],
                "ratio_q3": ratio[2],
            }
        )
        print(f"{name:12} {candidate:10} {middle:8.3f} CPU s ({low} to {high}), {ratio[1]:.3f} x nnU-Net", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", nargs="+", choices=sorted(PLANS), default=list(PLANS))
    parser.add_argument("--patch", type=int, nargs=3, help="instead of the plan's")
    parser.add_argument("--rounds", type=int, help="instead of the plan's number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-csv", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for name in arguments.plan:
        plan = copy.deepcopy(PLANS[name])
        plan["patch"] = tuple(arguments.patch or plan["patch"])
        with tempfile.TemporaryDirectory() as work:
            candidates = {
                "nnunet": nnunet_step(plan, Path(work)),
                "twin": our_step(plan, twin=True),
                "maskmed": our_step(plan, twin=False),
            }
            rows += rows_of(name, plan, measured(candidates, arguments.rounds or plan["rounds"]))
    about = machine() | {"nnunetv2": version("nnunetv2")}
    print(about)
    if not arguments.no_csv:
        write(FOLDER / "step.csv", [row | about for row in rows])


if __name__ == "__main__":
    main()
