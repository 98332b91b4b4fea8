"""Images and data folders: NIfTI headers, and every JSON file of a data set."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.case_facts import FactsFolder
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import DatasetFingerprint
from maskmed_zoo.data.formats import read_image, read_labels, write_labels
from maskmed_zoo.data.image import Geometry, check_same_geometry
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.data.sources import open_sources
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.folders import evaluate_folders
from tests.conftest import make_dataset
from tests.fuzz.harness import GIVEN, Target
from tests.fuzz.mutate import json_bytes, mutated_bytes

HOW = Preprocessing((2.0, 1.0, 1.0), ("zscore",))
FLOATS = (0, -0.0, -1, 1, 1e-30, 1e-6, 1e6, 1e30, 3e38, np.nan, np.inf, -np.inf, 0.7, 1.0000005)
INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    64,
    127,
    255,
    256,
    348,
    352,
    512,
    540,
    1024,
    20_000,
    32_767,
    -32_768,
    2**31 - 1,
    2**40,
    2**62,
)


def _images(folder: Path) -> list[tuple[Any, bytes]]:
    """Headers and voxels of small images, NIfTI-1 and -2, of several types and orientations."""
    del folder
    rng = np.random.default_rng(0)
    found: list[tuple[Any, bytes]] = []
    for kind, dtype, affine in (
        (nib.Nifti1Image, np.float32, np.diag([1.0, 1, 2, 1])),
        (nib.Nifti1Image, np.uint8, np.diag([-1.0, -1, 2, 1])),
        (nib.Nifti1Image, np.int16, np.array([[0, 0.7, 0.1, 5], [0.7, 0, 0, -3], [0, 0.1, -2, 8], [0, 0, 0, 1.0]])),
        (nib.Nifti2Image, np.float64, np.diag([0.5, 0.5, 0.5, 1])),
    ):
        image = kind(rng.integers(0, 4, (6, 5, 4)).astype(dtype), affine)
        raw = image.to_bytes()
        found.append((image.header.copy(), raw))
    return found


def _harmed_header(random: Random, header: Any, raw: bytes) -> bytes:
    """The file with one to three numbers of its header exchanged, in whatever way they are stored."""
    size = header.sizeof_hdr if hasattr(header, "sizeof_hdr") else len(header.binaryblock)
    fields: Any = np.frombuffer(raw[:size], header.template_dtype).copy()
    for _ in range(random.choice((1, 1, 2, 3))):
        name = random.choice(fields.dtype.names or ())
        values = fields[name].reshape(-1)
        if values.dtype.kind in "iuf":
            choices = FLOATS if values.dtype.kind == "f" else INTEGERS
            with np.errstate(all="ignore"):
                values[random.randrange(values.size)] = np.array(random.choice(choices)).astype(values.dtype)
        else:
            values[...] = random.choice((b"", b"n+1", b"ni1", b"n+2", b"\xff\xff", b"abc"))
        fields[name] = values.reshape(fields[name].shape)
    return fields.tobytes() + raw[size:]


def _read_nifti(original: list[tuple[Any, bytes]], random: Random, folder: Path) -> None:
    header, raw = random.choice(original)
    chance = random.random()
    content = _harmed_header(random, header, raw) if chance < 0.75 else mutated_bytes(random, raw)
    packed = gzip.compress(content, 1)
    packed = mutated_bytes(random, packed) if chance > 0.9 else packed
    if chance > 0.99:
        packed = gzip.compress(content + bytes(300_000_000 if chance > 0.997 else 50_000_000), 1)
    is_packed = random.random() < 0.7
    name = random.choice(("a.nii.gz",) * 9 + ("a.nii",)) if is_packed else random.choice(("a.nii",) * 9 + ("a.nii.gz",))
    path = folder / GIVEN / name
    path.write_bytes(packed if is_packed else content)
    volume = read_image(path) if random.random() < 0.5 else read_labels(path)
    _write_back(volume, folder)
    _prepare(volume.array.astype(np.float32), volume.geometry)


def _prepare(array: np.ndarray, geometry: Geometry) -> None:
    """What is read is either refused or made into what a network sees, whole and finite."""
    how = Preprocessing((2.0, 1.0, 1.0), ("zscore",), use_mask_for_norm=True)
    seen = crop_and_normalize(array[None], None, geometry, how, values=4)
    image = seen.image()
    assert image.shape[1:] == seen.region.resampled
    assert np.isfinite(image).all()


def _write_back(volume: Any, folder: Path) -> None:
    """A map of what was read lies on its very grid."""
    written = folder / GIVEN / "map.nii.gz"
    write_labels(written, np.zeros(volume.array.shape, np.uint8), volume.geometry)
    again = read_labels(written)
    check_same_geometry(volume, again)
    assert again.geometry.shape == volume.geometry.shape


def _dataset(folder: Path) -> Path:
    root = make_dataset(folder / "Dataset001_Boxes", cases=3)
    names = [f"case_{i:02d}" for i in range(3)]
    (root / "splits_final.json").write_text(json.dumps([{"train": names[:2], "val": names[2:]}] * 2))
    (root / "annotated.json").write_text(json.dumps({name: [1, 2] for name in names}))
    return root


def _copy(root: Path, folder: Path) -> Path:
    """The data set with links to its images, so that a case costs little."""
    copied = folder / GIVEN / root.name
    copied.mkdir()
    for inner in ("imagesTr", "labelsTr"):
        (copied / inner).symlink_to(root / inner)
    for path in root.glob("*.json"):
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def _read_folder(harmed: str) -> Any:
    """The attempt that harms one JSON file of a data set."""

    def attempt(root: Path, random: Random, folder: Path) -> None:
        copied = _copy(root, folder)
        path = copied / harmed
        path.write_bytes(json_bytes(random, json.loads(path.read_bytes())))
        dataset = open_dataset(copied)
        load_case(dataset.cases[0], dataset)
        for fold in (0, 1):
            dataset.splits(fold)
        for source in open_sources(copied):
            json.dumps(source.record(source.splits(0).training))
        if random.random() < 0.05:
            evaluate_folders(copied / "labelsTr", copied / "labelsTr")

    return attempt


def _cache(folder: Path) -> tuple[Path, Any]:
    root = make_dataset(folder / "Dataset001_Boxes", cases=1)
    dataset = open_dataset(root)
    cache = CaseCache(folder / "cache", dataset, HOW)
    cache.prepare(dataset.cases)
    return folder / "cache", dataset


def _read_cache(original: tuple[Path, Any], random: Random, folder: Path) -> None:
    source, dataset = original
    cache = CaseCache(folder / GIVEN, dataset, HOW)
    case = next(source.glob("*/case_00"))
    copied = cache.folder / "case_00"
    copied.mkdir(parents=True)
    harmed = random.choice(("case.json",) * 5 + ("image.npy", "labels.npy", "coordinates.npz"))
    for path in case.iterdir():
        content = path.read_bytes()
        if path.name == harmed:
            is_json = harmed == "case.json"
            content = json_bytes(random, json.loads(content)) if is_json else mutated_bytes(random, content)
        (copied / path.name).write_bytes(content)
    found = cache.load(dataset.cases[0])
    for read in (
        lambda: found.image[:, 1:2],
        lambda: found.labels[1:2],
        lambda: dict(found.coordinates),
    ):
        read()


def _read_facts(original: tuple[Path, Any], random: Random, folder: Path) -> None:
    """Facts that are damaged are none, and never taken for others."""
    source, dataset = original
    facts = FactsFolder(folder / GIVEN, dataset)
    assert facts.folder is not None
    facts.folder.mkdir(parents=True)
    content = next(source.glob("*/case_00.npz")).read_bytes()
    (facts.folder / "case_00.npz").write_bytes(mutated_bytes(random, content))
    found = facts.read(dataset.cases[0])
    if found is None:
        raise DataError("to be measured again")
    stats = DatasetFingerprint((found,)).intensities
    assert all(np.isfinite(list(channel.to_dict().values())).all() for channel in stats)


DATA = (
    Target("nifti", 5000, _images, _read_nifti),
    Target("dataset.json", 2000, _dataset, _read_folder("dataset.json")),
    Target("splits_final.json", 2000, _dataset, _read_folder("splits_final.json")),
    Target("annotated.json", 2000, _dataset, _read_folder("annotated.json")),
    Target("cache", 2000, _cache, _read_cache),
    Target("facts", 2000, _cache, _read_facts),
)
