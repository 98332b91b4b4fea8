"""Memory and time of a prediction at the image's own grid: ours, MONAI's sliding window, nnU-Net's predictor.

    python docs/benchmarks/inference.py --data Dataset101_HeadNeckCT --csv docs/benchmarks/inference.csv
    python docs/benchmarks/inference.py --data Dataset101_HeadNeckCT --csv small.csv --size 128 128 160

A CT of the data set is upsampled to `--size` voxels of 0.8 mm, int16. All three run one network, with random weights,
16 labels and background, over the same windows of 64 voxels, half of each covered again, on two cores (`--threads`).
All average probabilities, so nnU-Net gets them in the place of logits. Windows coincide where an axis has 64 + 32 n
voxels, and both others are given our weights of a window's voxels, so labels are equal but for rounding, which is that
of 16 bits in nnU-Net: `largest_gap` is how far the two largest of our probabilities lie apart where labels differ, at
most. Each variant is a fresh process: `MB_beyond` is its highest resident memory less int16 image and
uint8 labels, Python and its libraries included. `ours_twice` has the image twice, one after the other along z.

`file` is the whole of `predict` from a NIfTI file to another, at a spacing of 5 mm: `MB_peak` counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Row, in_fresh_process, machine, write
from numpy.typing import NDArray

from maskmed_zoo.build import model_of
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import IntensityStats
from maskmed_zoo.data.formats import nifti
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.resample import Resampled
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.sliding_window import importance
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe import Recipe, load_recipe

WINDOW = (64, 64, 64)
SPACING = (0.8, 0.8, 0.8)
LABELS = {"background": 0} | {f"organ_{number}": number for number in range(1, 17)}
VARIANTS = ("ours", "monai", "nnunet", "ours_twice", "file")


def upsampled(data: Path, size: tuple[int, int, int], folder: Path) -> None:
    """The image, its NIfTI file and the statistics of its labelled voxels, for all variants."""
    dataset = open_dataset(data)
    image, labels, _ = load_case(dataset.cases[0], dataset)
    assert labels is not None
    values = image[0][labels > 0]
    stats = [float(n) for n in (values.mean(), values.std(), *np.percentile(values, (0.5, 99.5)))]
    (folder / "stats.json").write_text(json.dumps(stats))
    out = np.lib.format.open_memmap(folder / "image.npy", "w+", np.int16, size)
    made = Resampled(image[0], size, None)
    for start in range(0, size[0], 16):
        out[start : start + 16] = made[start : start + 16].round().astype(np.int16)
    out.flush()


def network() -> tuple[Recipe, SegmentationModel]:
    """The recipe and its network, which says something decided of every voxel."""
    own: dict[str, Any] = {"data.labels": LABELS, "data.spacing": [*SPACING], "data.patch_size": [*WINDOW]}
    own |= {"model.encoder.channels": [8, 16, 32], "inference.overlap": 0.5, "inference.batch_size": 1}
    recipe = load_recipe("pointwise_headneck_cpu", own)
    torch.manual_seed(0)
    model = model_of(recipe).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return recipe, model


class AsProbabilities(torch.nn.Module):
    """A network whose output is its probabilities."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(b c d h w) to (b k d h w)."""
        return self.model.predict(windows).exp()


def normalized(image: NDArray[np.int16], stats: IntensityStats) -> torch.Tensor:
    """(1 z y x) float32, in the memory of the result and the image."""
    result = torch.from_numpy(image.astype(np.float32))[None]
    result.clamp_(stats.percentile_00_5, stats.percentile_99_5).sub_(stats.mean).div_(max(stats.std, 1e-8))
    return result


def by_monai(model: torch.nn.Module, image: torch.Tensor) -> NDArray[np.uint8]:
    """Labels by `sliding_window_inference`."""
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        found = sliding_window_inference(
            image[None], WINDOW, 1, model, overlap=0.5, mode="gaussian", roi_weight_map=importance(WINDOW)
        )
        assert isinstance(found, torch.Tensor)
        return found[0].argmax(0).to(torch.uint8).numpy()


def by_nnunet(model: torch.nn.Module, image: torch.Tensor) -> NDArray[np.uint8]:
    """Labels by nnU-Net's predictor and export."""
    from nnunetv2.inference import predict_from_raw_data as module
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    plans = PlansManager({"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]})
    configuration = ConfigurationManager(
        {
            "architecture": {},
            "patch_size": list(WINDOW),
            "spacing": list(SPACING),
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling,
        }
    )
    module.compute_gaussian = lambda *_, **__: (10 * importance(WINDOW)).half()
    predictor = module.nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(model, plans, configuration, None, {"labels": LABELS}, "", None)
    shape = tuple(image.shape[1:])
    logits = predictor.predict_sliding_window_return_logits(image)
    facts = {
        "spacing": list(SPACING),
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
    }
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, predictor.label_manager, facts, num_threads_torch=torch.get_num_threads()
    )


def measured(variant: str, folder: Path, threads: int) -> Row:
    """In this process."""
    torch.set_num_threads(threads)
    stats = IntensityStats(*json.loads((folder / "stats.json").read_text()))
    recipe, model = network()
    start, work = time.perf_counter(), time.process_time()
    if variant == "file":
        coarse = load_recipe("pointwise_headneck_cpu", {"data.spacing": [5.0, 5.0, 5.0]})
        source = folder / "image.nii.gz"
        shape = nifti.read(source)[1].canonical_shape
        Predictor(coarse, model_of(coarse), (stats,), device="cpu").files(source, folder / "out")
    else:
        image = np.load(folder / "image.npy")
        if variant == "ours_twice":
            image = np.concatenate([image, image])
        shape = image.shape
        start, work = time.perf_counter(), time.process_time()
        if variant.startswith("ours"):
            labels = Predictor(recipe, model, (stats,), device="cpu").segment(image, spacing=SPACING).labels
        else:
            ready = normalized(image, stats)
            del image
            labels = (by_monai if variant == "monai" else by_nnunet)(AsProbabilities(model).eval(), ready)
        np.save(folder / f"{variant}.npy", labels)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - work
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1e3
    own = 3 * int(np.prod(shape)) / 1e6  # int16 image, uint8 labels
    return {
        "variant": variant,
        "size": "x".join(map(str, shape)),
        "MB_peak": round(peak),
        "MB_image_and_labels": round(own),
        "MB_beyond": round(peak - own),
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
    }


def largest_gap(folder: Path, variant: str, threads: int) -> float:
    """Between the two largest of our probabilities at a voxel whose label is another one there."""
    torch.set_num_threads(threads)
    recipe, model = network()
    image, ours, theirs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "ours", variant))
    found = [0.0]

    def take(place: tuple[slice, ...], probabilities: torch.Tensor) -> None:
        differs = torch.from_numpy(ours[place] != theirs[place])
        first, second = probabilities[:, differs].topk(2, 0).values
        found.append(float((first - second).max()) if first.numel() else 0.0)

    stats = IntensityStats(*json.loads((folder / "stats.json").read_text()))
    Predictor(recipe, model, (stats,), device="cpu").segment(image, spacing=SPACING, slabs=take)
    return max(found)


def main() -> None:
    """Measure the variants one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Dataset101_HeadNeckCT, or another data set of CTs")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=3, default=(608, 512, 512), help="voxels z y x")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        upsampled(given.data, tuple(given.size), folder)
        if "file" in given.variants:
            image = np.load(folder / "image.npy", mmap_mode="r")
            geometry = geometry_of(image, affine=np.diag([*SPACING[::-1], 1.0]))
            nifti.write(folder / "image.nii.gz", geometry.from_canonical(image), geometry)
        for variant in given.variants:
            row = in_fresh_process(__file__, "--measure", variant, str(folder), str(given.threads))
            if variant not in ("ours_twice", "file") and (folder / "ours.npy").exists():
                ours, theirs = (np.load(folder / f"{each}.npy", mmap_mode="r") for each in ("ours", variant))
                row["voxels_that_differ"] = int(
                    sum(np.count_nonzero(a != b) for a, b in zip(ours, theirs, strict=True))
                )
                row["largest_gap"] = in_fresh_process(__file__, "--gap", variant, str(folder), str(given.threads))
            else:
                row["voxels_that_differ"], row["largest_gap"] = "", ""
            rows.append(row | machine() | {"threads": given.threads})
            print(rows[-1], file=sys.stderr, flush=True)
            write(given.csv, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
    elif sys.argv[1:2] == ["--gap"]:
        print(json.dumps(largest_gap(Path(sys.argv[3]), sys.argv[2], int(sys.argv[4]))))
    else:
        main()
