"""Training patches per CPU-second: ours against nnU-Net's own loader, with the same policy on the same cases.

Both read the same preprocessed images, ours from its cache, nnU-Net's `nnUNetDataLoader` with the transforms of its
default trainer from a blosc2 folder as its preprocessing writes it. One process, one thread, batches of 2, in turn:
each round asks both for the same number of batches; the figure is the median of the rounds. Wants `nnunetv2`.

    python docs/benchmarks/feed.py --data Dataset004_Hippocampus --csv docs/benchmarks/feed.csv

Without `--data` only the made-up data set is measured: CT-sized volumes with five ellipsoids.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure
import nibabel as nib
import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import comp_blosc2_params
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.utils.data import default_collate

from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import fingerprint_dataset
from maskmed_zoo.data.patches import PatchDataset
from maskmed_zoo.data.preprocess import Preprocessing
from maskmed_zoo.recipe.schema import DataRecipe
from maskmed_zoo.settings import Size3

BATCH = 2
MADE_UP: Size3 = (180, 230, 230)
LIMIT = np.deg2rad(30)


def make_up(folder: Path, cases: int = 4) -> Path:
    """A data set of smoothed noise with five ellipsoids of different size."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in MADE_UP], indexing="ij"))
    for case in range(cases):
        labels = np.zeros(MADE_UP, np.uint8)
        for value in range(1, 6):
            center, axes = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.06, 0.35, 3)
            labels[(((grid - center[:, None, None, None]) / axes[:, None, None, None]) ** 2).sum(0) < 1] = value
        image = gaussian_filter(rng.normal(size=MADE_UP), 1) * 300 + labels * 40.0 - 100
        for kind, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", labels)):
            name = f"case_{case}{'_0000' if kind == 'imagesTr' else ''}.nii.gz"
            nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), folder / kind / name)
    names = {"background": 0} | {f"organ_{value}": value for value in range(1, 6)}
    description = {"channel_names": {"0": "CT"}, "labels": names, "file_ending": ".nii.gz", "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def ours(cache: CaseCache, cases: Sequence[Any], patch: Size3) -> PatchDataset:
    """Our patches, mirrored along all axes."""
    recipe = DataRecipe(spacing=cache.how.spacing, patch_size=patch, mirror_axes=("z", "y", "x"))
    labels = cache.dataset.labels
    return PatchDataset([(cache, cases)], recipe, labels=labels, batch_size=BATCH, seed=0, stream="train")


def theirs(patches: PatchDataset, folder: Path, patch: Size3, values: Sequence[int]) -> nnUNetDataLoader:
    """nnU-Net's loader on what ours reads, written as its preprocessing would."""
    for member in patches.members:
        case = member.case
        image, _ = patches.read(member)((0, 0, 0), case.labels.shape)
        blocks, chunks = comp_blosc2_params(tuple(image.shape), patch)
        places = {label: np.pad(found, [(0, 0), (1, 0)]) for label, found in case.coordinates.items()}
        nnUNetDatasetBlosc2.save_case(
            image.numpy(), np.asarray(case.labels)[None].astype(np.int8), {"class_locations": places},
            str(folder / case.identifier), chunks=chunks, blocks=blocks,
        )  # fmt: skip
    box = get_patch_size(patch, *[(-LIMIT, LIMIT)] * 3, (0.85, 1.25))
    transforms = nnUNetTrainer.get_training_transforms(patch, (-LIMIT, LIMIT), None, (0, 1, 2), False)
    manager = SimpleNamespace(all_labels=list(values), has_ignore_label=False)
    return nnUNetDataLoader(nnUNetDatasetBlosc2(str(folder)), BATCH, box, patch, manager, 0.33, transforms=transforms)


def seconds(call: Callable[[int], object], first: int, batches: int) -> float:
    """CPU-seconds of this process for some batches."""
    start = time.process_time()
    for index in range(first, first + batches):
        call(index)
    return time.process_time() - start


def measured(name: str, data: Path, patch: Size3, *, cases: int, batches: int, rounds: int) -> measure.Row:
    """A row of the table."""
    dataset = open_dataset(data)
    with tempfile.TemporaryDirectory() as folder:
        chosen = dataset.cases[:cases]
        recipe = DataRecipe(spacing=(1.0, 1.0, 1.0), patch_size=patch)
        how = Preprocessing.of(recipe, dataset.channels, fingerprint_dataset(dataset, chosen).intensities)
        cache = CaseCache(Path(folder) / "cache", dataset, how)
        cache.prepare(chosen)
        patches = ours(cache, chosen, patch)
        blosc = Path(folder) / "blosc2"
        blosc.mkdir()
        loader = theirs(patches, blosc, patch, list(dataset.labels.values()))
        candidates: dict[str, Callable[[int], object]] = {
            "ours": lambda index: default_collate([patches[index * BATCH + slot] for slot in range(BATCH)]),
            "theirs": lambda _: loader.generate_train_batch(),
        }
        times: dict[str, list[float]] = {key: [] for key in candidates}
        for turn in range(rounds + 1):
            for key, call in candidates.items():
                spent = seconds(call, turn * batches, batches)
                if turn:  # the first one fills caches, and nnU-Net's blur tries out which convolution is faster
                    times[key].append(spent)
    per_second = {key: batches * BATCH / statistics.median(values) for key, values in times.items()}
    ratios = [other / own for own, other in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "data": name, "patch": "x".join(map(str, patch)), "cases": cases, "patches_per_round": batches * BATCH,
        "rounds": rounds, "ours_per_cpu_second": round(per_second["ours"], 1),
        "nnunet_per_cpu_second": round(per_second["theirs"], 1),
        "ratio": round(per_second["ours"] / per_second["theirs"], 2),
        "ratio_lowest": round(min(ratios), 2), "ratio_highest": round(max(ratios), 2),
    }  # fmt: skip


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Dataset004_Hippocampus")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[measure.Row] = []
    if args.data is not None:
        rows.append(measured("Hippocampus", args.data, (40, 56, 40), cases=20, batches=100, rounds=args.rounds))
    with tempfile.TemporaryDirectory() as folder:
        made_up = make_up(Path(folder) / "MadeUp")
        rows.append(measured("made-up CT", made_up, (128, 128, 128), cases=4, batches=16, rounds=args.rounds))
    measure.write(args.csv, [row | measure.machine() for row in rows])
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
