"""Ways to keep a normalized image on disk: size, time of a patch, CPU time of writing.

    python docs/benchmarks/cache.py --data DIR/Dataset101_HeadNeckCT

Of a case of the data set, and of a made-up volume of 300 x 512 x 512 voxels, in whole HU, blurred noise with noise:
`float32` and `float16` as .npy, `uint16` as the cache has it (`maskmed_zoo.data.storage`), and nnU-Net's way, blosc2
(LZ4HC, blocks by the patch), of float32. Files are in the system's cache when patches are read; patches are the same
for all ways, which take turns. Appends to `cache.csv`. Needs `nnunetv2` (extra `nnunet`) for blosc2.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import blosc2
import measure
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from scipy import ndimage

from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import fingerprint_dataset
from maskmed_zoo.data.normalize import Normalized, Scaling
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.data.storage import ImageWriter, Spread, StoredImage, coding_of

HERE = Path(__file__).resolve().parent
PATCHES = 30
Index = tuple[slice, ...]


def main() -> None:
    """Write, read, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    facts = {key: value for key, value in measure.machine().items() if key in ("date", "machine")}
    facts |= {name: version(name) for name in ("numpy", "blosc2")}
    rows: list[dict[str, Any]] = []
    for name, image, patch in (
        (f"{args.data.name} at 3 mm", real(args.data), (64, 64, 64)),
        ("made up", large(), (128, 128, 128)),
    ):
        with tempfile.TemporaryDirectory(dir=HERE) as folder:
            rows += [facts | {"image": name} | row for row in measured(image, patch, Path(folder))]
    measure.append(HERE / "cache.csv", rows)
    for row in rows:
        print("  ".join(str(value) for value in row.values()))


def real(root: Path) -> np.ndarray:
    """The first case, preprocessed."""
    dataset = open_dataset(root)
    image, labels, geometry = load_case(dataset.cases[0], dataset)
    stats = fingerprint_dataset(dataset, dataset.cases[:10]).intensities
    how = Preprocessing((3.0, 3.0, 3.0), ("ct",), stats)
    return crop_and_normalize(image, labels, geometry, how, values=2).image()


def large() -> np.ndarray:
    """Soft tissue and air in whole HU, clipped and divided as CT is."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.normal(size=(75, 128, 128)), 4)
    fine = ndimage.zoom(coarse / coarse.std(), (4, 4, 4), order=1).astype(np.float32)
    values = np.round(np.where(fine > -0.5, 40 + 30 * fine, -1000) + rng.normal(0, 12, fine.shape))
    return ((np.clip(values, -160, 240) - 40) / 60).astype(np.float32)[None]


def measured(image: np.ndarray, patch: tuple[int, int, int], folder: Path) -> list[dict[str, Any]]:
    """A row per way."""
    rng = np.random.default_rng(0)
    starts = [
        [int(rng.integers(n - p + 1)) for n, p in zip(image.shape[1:], patch, strict=True)] for _ in range(PATCHES)
    ]
    places = [(slice(None), *(slice(s, s + p) for s, p in zip(start, patch, strict=True))) for start in starts]
    ways = {"float32": npy(np.float32), "float16": npy(np.float16), "uint16": sixteen, "blosc2": blosc(patch)}
    readers: dict[str, Callable[[Index], np.ndarray]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for way, write in ways.items():
        start = time.process_time()
        readers[way] = write(image, folder / way)
        seconds = time.process_time() - start
        error = float(np.abs(readers[way]((slice(None),)) - image).max() / image.std())
        rows[way] = {
            "way": way, "shape": "x".join(map(str, image.shape)), "patch": "x".join(map(str, patch)),
            "mb": f"{(folder / way).stat().st_size / 1e6:.2f}", "error_std": f"{error:.1e}",
            "write_cpu_s": f"{seconds:.3f}",
        }  # fmt: skip
    wall: dict[str, list[float]] = {way: [] for way in ways}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for place in places:
        for way, read in readers.items():
            started, start = time.perf_counter(), time.process_time()
            read(place)
            spent[way].append(time.process_time() - start)
            wall[way].append(time.perf_counter() - started)
    for way, row in rows.items():
        row["patch_ms"] = f"{1e3 * median(wall[way]):.3f}"
        row["patch_cpu_ms"] = f"{1e3 * median(spent[way]):.3f}"
    return list(rows.values())


def npy(dtype: type[np.floating]) -> Callable[[np.ndarray, Path], Callable[[Index], np.ndarray]]:
    """Plain arrays, mapped."""

    def write(image: np.ndarray, path: Path) -> Callable[[Index], np.ndarray]:
        with path.open("wb") as file:
            np.save(file, image.astype(dtype))
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return lambda place: np.asarray(array[place]).astype(np.float32)

    return write


def sixteen(image: np.ndarray, path: Path) -> Callable[[Index], np.ndarray]:
    """As the cache does."""
    found = [coding_of(Spread.of(Normalized(channel, Scaling(0.0, 1.0)))) for channel in image]
    codings = tuple(coding for coding in found if coding is not None)
    with ImageWriter(path, image.shape, codings) as writer:
        for target, channel in zip(writer.channels, image, strict=True):
            target[0 : len(channel)] = channel
    stored = StoredImage(np.load(path, mmap_mode="r", allow_pickle=False), codings)
    return lambda place: stored[place]


def blosc(patch: tuple[int, int, int]) -> Callable[[np.ndarray, Path], Callable[[Index], np.ndarray]]:
    """As nnU-Net does, of the two filters it tries the better one."""

    def write(image: np.ndarray, path: Path) -> Callable[[Index], np.ndarray]:
        blocks, chunks = comp_blosc2_params(image.shape, patch, 4)
        sizes: dict[Any, int] = {}
        for filters in (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE):
            settings = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1, "filters": [filters]}
            part = np.ascontiguousarray(image[:, : chunks[1], : chunks[2], : chunks[3]])
            sizes[filters] = blosc2.asarray(part, cparams=settings).schunk.cbytes
        best = min(sizes, key=lambda filters: sizes[filters])
        settings = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1, "filters": [best]}
        named = path.with_suffix(".b2nd")
        blosc2.asarray(image, urlpath=str(named), chunks=chunks, blocks=blocks, cparams=settings)
        named.rename(path)
        array = blosc2.open(urlpath=str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        return lambda place: np.asarray(array[place if len(place) == 4 else ...])

    return write


if __name__ == "__main__":
    main()
