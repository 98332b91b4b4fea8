"""A made-up CT data set in nnU-Net's raw layout: a torso with nine organs, different in every case.

Idea: a real data set has a licence, a download and hours of training; a phantom has none of them and still asks what
real data ask. Organs are ellipsoids and tubes in a torso of fat, muscle and bowel; each case is the same template under
a random affine map and a smooth random displacement, then given texture, partial volume and scanner noise. Kidneys and
lungs come as left/right pairs of equal density, shape and texture, so only their place tells left from right; liver
and spleen differ by few HU; ribs, hips, heart and gallbladder look like labelled organs but are not.

With `content="parts"` the same torso has 33 labels: lobes of the lungs, vertebrae and ribs with numbers, which are told
apart by place alone, and small ones such as the adrenal glands, of 10 to 25 voxels.

With `content="lesions"` the volumes hold none to six bright nodules and dark cysts in one organ instead, with a map of
which is which in `instancesTr/`: some touch, and then connected parts of the labels are fewer than lesions.

Source: our own. The HU values are textbook means of a contrast-enhanced CT, bowel apart. It says nothing about
clinical performance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial.transform import Rotation

from maskmed_zoo.errors import DataError
from maskmed_zoo.files import make_folder, write_atomically, write_json
from maskmed_zoo.settings import Size3, Spacing3

Array = NDArray[np.float32]

LABELS = {
    "background": 0,
    "liver": 1,
    "spleen": 2,
    "kidney_right": 3,
    "kidney_left": 4,
    "lung_right": 5,
    "lung_left": 6,
    "spine": 7,
    "aorta": 8,
    "bladder": 9,
}
_PARTS = (
    *("liver", "spleen", "kidney_right", "kidney_left", "aorta", "vena_cava", "bladder", "gallbladder", "heart"),
    *("adrenal_right", "adrenal_left", "hip_right", "hip_left"),
    *("lung_upper_right", "lung_middle_right", "lung_lower_right", "lung_upper_left", "lung_lower_left"),
    *(f"vertebra_{number}" for number in range(1, 8)),
    *(f"rib_{number}_{side}" for number in range(1, 5) for side in ("right", "left")),
)
PART_LABELS = {"background": 0} | {name: index for index, name in enumerate(_PARTS, start=1)}
LESION_LABELS = {"background": 0, "nodule": 1, "cyst": 2}
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "ASR")
_LABELS = {"organs": LABELS, "parts": PART_LABELS, "lesions": LESION_LABELS}
_COARSEST = {"organs": (24, 28, 32), "parts": (40, 48, 56)}
MIN_VOXELS = 8
FIELD_MM = (252.0, 238.0, 272.0)
"""Nominal field of view (z, y, x); the voxel size is this over the shape."""
LESION_FIELD_MM = (160.0, 200.0, 200.0)
MOST_LESIONS = 6

# Tissue: mean HU, standard deviation of its texture in HU.
_AIR, _FAT, _MUSCLE, _BONE = (-1000, 0), (-100, 12), (55, 10), (400, 90)
_LUNG, _KIDNEY = (-800, 40), (160, 12)
# Labelled with content "parts" alone; else they only look like organs.
_HEART, _GALLBLADDER, _HIP_RIGHT, _HIP_LEFT, _RIB = range(10, 15)
# Label, tissue, centre (z, y, x) mm and radii mm, painted in this order, later over earlier.
# x grows to the patient's right, y to the front, z upwards.
_ORGANS = (
    (5, _LUNG, (104, -4, 50), (50, 52, 36)),  # lung_right
    (6, _LUNG, (104, -4, -50), (50, 52, 36)),  # lung_left
    (_HEART, (150, 10), (98, 18, -12), (36, 30, 36)),
    (0, _FAT, (-16, -31, 41), (42, 26, 28)),  # fat around the right kidney
    (0, _FAT, (-10, -31, -41), (42, 26, 28)),  # fat around the left kidney
    (1, (105, 8), (38, 10, 38), (38, 48, 50)),  # liver
    (2, (125, 10), (34, -24, -64), (32, 32, 22)),  # spleen
    (3, _KIDNEY, (-16, -31, 41), (34, 19, 21)),  # kidney_right
    (4, _KIDNEY, (-10, -31, -41), (34, 19, 21)),  # kidney_left
    (_GALLBLADDER, (10, 4), (10, 36, 34), (20, 15, 15)),
    (_HIP_RIGHT, _BONE, (-100, -22, 66), (32, 32, 12)),
    (_HIP_LEFT, _BONE, (-100, -22, -66), (32, 32, 12)),
    (9, (10, 4), (-88, 22, 0), (24, 28, 32)),  # bladder
)
_ADRENALS = (("adrenal_right", (26, -36, 28)), ("adrenal_left", (30, -30, -32)))


def make_phantom_dataset(
    root: Path,
    *,
    cases: int = 20,
    seed: int = 0,
    shape: Size3 = (48, 56, 64),
    test_cases: int = 0,
    content: Literal["organs", "parts", "lesions"] = "organs",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set in nnU-Net's raw layout to the empty or new folder `root` and return it.

    `content` is one of three: nine organs, 33 parts, which want a shape of (40, 48, 56) or more, or lesions.
    `shape` is (z, y, x) in voxels. Case i depends on `seed`, `shape` and i only, so more cases leave the others as they
    are. One fold in `splits_final.json` keeps a quarter of the cases for validation. `test_cases` more, of other
    random numbers, go to `imagesTs/` and `labelsTs/`. Lesions are numbered in `instancesTr/` and `instancesTs/`.
    `progress(done, total)` is called after every case. Raises `DataError` for fewer than two cases or a folder in use.
    """
    root = Path(root)
    if cases < 2 or test_cases < 0:
        raise DataError(f"a phantom data set needs at least 2 cases and 0 test cases, got {cases} and {test_cases}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} exists and is not an empty folder; delete it or give another one")
    done = 0
    for split, count in (("Tr", cases), ("Ts", test_cases)):
        for index in range(count):
            name = f"phantom_{index:03d}" if split == "Tr" else f"phantom_test_{index:03d}"
            orientation = ORIENTATIONS[index % len(ORIENTATIONS)]
            if content != "lesions":
                image, labels, spacing = phantom_case(_case_seed(seed, split, index), shape, content)
            else:
                image, labels, numbers, spacing = lesion_case(_case_seed(seed, split, index), shape)
                _write(root / f"instances{split}" / f"{name}.nii.gz", numbers, spacing, orientation)
            _write(root / f"images{split}" / f"{name}_0000.nii.gz", image, spacing, orientation)
            _write(root / f"labels{split}" / f"{name}.nii.gz", labels, spacing, orientation)
            done += 1
            if progress is not None:
                progress(done, cases + test_cases)
    names = [f"phantom_{index:03d}" for index in range(cases)]
    held_out = names[1::4]
    splits = [{"train": [name for name in names if name not in held_out], "val": held_out}]
    description = {
        "name": {"organs": "Phantom", "parts": "PartPhantom", "lesions": "LesionPhantom"}[content],
        "channel_names": {"0": "CT"},
        "labels": _LABELS[content],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(root / "splits_final.json", splits)
    write_json(root / "dataset.json", description)
    return root


def phantom_case(
    seed: int, shape: Size3 = (48, 56, 64), content: Literal["organs", "parts"] = "organs"
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Spacing3]:
    """One case: image (z y x) int16 HU and labels (z y x) uint8, both in RAS order, and the spacing (z, y, x) in mm.

    Every label has at least `MIN_VOXELS` voxels. Raises `DataError` where `shape` is too small for that.
    """
    for attempt in range(8):
        rng = np.random.default_rng([seed, attempt])
        axial, plane = rng.uniform(0.95, 1.05, 2)
        mm = [field / size for field, size in zip(FIELD_MM, shape, strict=True)]
        spacing = (float(mm[0] * axial), float(mm[1] * plane), float(mm[2] * plane))
        at = _template_coordinates(rng, shape, spacing)
        structures, mean, deviation = _anatomy(rng, at)
        if content == "parts":
            labels = _parts(rng, at, structures, mean, deviation)
        else:
            labels = np.where(structures < len(LABELS), structures, 0).astype(np.uint8)
        if np.bincount(labels.ravel(), minlength=len(_LABELS[content])).min() >= MIN_VOXELS:
            return _scan(rng, mean, deviation), labels, spacing
    raise DataError(
        f"phantom shape {tuple(shape)} (z, y, x) is too coarse for every {content[:-1]}; "
        f"try {_COARSEST[content]} or more"
    )


def lesion_case(
    seed: int, shape: Size3 = (48, 56, 64)
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8], Spacing3]:
    """One case with lesions: image (z y x) int16 HU, labels and numbers of lesions (z y x) uint8, spacing (z, y, x) mm.

    Every lesion has at least `MIN_VOXELS` voxels. Raises `DataError` where `shape` is too small for that.
    """
    z, y, x = (mm / size for mm, size in zip(LESION_FIELD_MM, shape, strict=True))
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, (z, y, x), strict=True)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    count = int(np.random.default_rng(seed).integers(MOST_LESIONS + 1))
    for attempt in range(8):
        rng = np.random.default_rng([seed, attempt])
        organ = np.array([66, 70, 76]) * rng.uniform(0.9, 1.05, 3)
        mean = np.where(np.hypot(at[1] / 92, at[2] / 96) < 1, _FAT[0], _AIR[0]).astype(np.float32)
        mean[((at / organ[:, None, None, None]) ** 2).sum(0) < 1] = 100
        labels, numbers = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        nearest = np.ones(shape)  # where two lesions overlap, a voxel belongs to the one it lies deeper in
        lesions = _lesions(rng, organ, count)
        for number, (label, center, radii) in enumerate(lesions, start=1):
            distance = (((at - center[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0)
            inside = distance < nearest
            nearest[inside], labels[inside], numbers[inside] = distance[inside], label, number
            mean[inside] = 180 if label == LESION_LABELS["nodule"] else 10
        if np.bincount(numbers.ravel(), minlength=len(lesions) + 1).min() >= MIN_VOXELS:
            return _scan(rng, mean, np.where(mean > _AIR[0], 10, 0).astype(np.float32)), labels, numbers, (z, y, x)
    raise DataError(f"phantom shape {tuple(shape)} (z, y, x) is too coarse for lesions; try (24, 32, 32) or more")


def _lesions(
    rng: np.random.Generator, organ: NDArray[np.float64], count: int
) -> list[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """Label, centre and radii (z, y, x) mm of ellipsoids; about one in three lies against another one."""
    found: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    for _ in range(count):
        radii = rng.uniform(9, 16) * rng.uniform(0.85, 1.15, 3)
        label = int(rng.integers(1, len(LESION_LABELS)))
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        if found and rng.random() < 0.4:
            label, center, others = found[int(rng.integers(len(found)))]
            center = center + direction * 0.85 * (radii.mean() + others.mean())
        else:
            center = direction * organ * 0.75 * rng.random() ** (1 / 3)
        found.append((label, center, radii))
    return found


def _case_seed(seed: int, split: str, index: int) -> int:
    sequence = np.random.SeedSequence(seed, spawn_key=(0 if split == "Tr" else 1, index))
    return int(sequence.generate_state(1, np.uint64)[0])


def _template_coordinates(rng: np.random.Generator, shape: Size3, spacing: Sequence[float]) -> Array:
    """(3 z y x) mm: where in the template each voxel lies, after a random affine map and a smooth displacement."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    rotation = Rotation.from_euler("zyx", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    scale = rng.uniform(0.91, 1.09) * rng.uniform(0.95, 1.05, 3)
    shift = rng.uniform(-8, 8, 3)
    moved = np.einsum("ij,jzyx->izyx", rotation, grid - shift[:, None, None, None]) / scale[:, None, None, None]
    for axis in range(3):
        coarse = rng.normal(0, 4, (5, 5, 5))
        moved[axis] += zoom(coarse, [n / 5 for n in shape], order=3, mode="nearest", grid_mode=True)
    return moved.astype(np.float32)


def _anatomy(rng: np.random.Generator, at: Array) -> tuple[NDArray[np.uint8], Array, Array]:
    """Structures, mean HU and texture deviation, each (z y x), of the template at coordinates `at` (3 z y x).

    Structures are labels, and beyond them `_HEART` to `_RIB`.
    """
    z, y, x = at
    structures = np.zeros(z.shape, np.uint8)
    mean = np.full(z.shape, _AIR[0], np.float32)
    deviation = np.zeros(z.shape, np.float32)

    def paint(where: NDArray[np.bool_], label: int, tissue: tuple[int, int], jitter: float = 0.0) -> None:
        structures[where] = label
        mean[where] = tissue[0] + jitter
        deviation[where] = tissue[1]

    depth = (1 - np.hypot(x / 104, y / 78)) * 85  # mm below the skin, roughly
    fat = rng.uniform(8, 14)
    paint(depth > 0, 0, _FAT)
    paint(depth > fat, 0, _MUSCLE)
    ribs = (np.sin((z - 0.4 * y) * (2 * np.pi / 24)) > 0.3) & (z > 5) & (np.abs(depth - fat - 5) < 4)
    paint(ribs, _RIB, _BONE)
    inside = depth > fat + 9
    paint(inside, 0, (-50, 28))  # bowel and the fat between its loops
    jitter = {tissue: rng.uniform(-3, 3) for _, tissue, _, _ in _ORGANS}  # the same for both of a pair
    for label, tissue, center, radii in _ORGANS:
        place = np.asarray(center) + rng.uniform(-4, 4, 3)
        radius = np.asarray(radii) * rng.uniform(0.92, 1.08, 3)
        distance = sum(((a - p) / r) ** 2 for a, p, r in zip(at, place, radius, strict=True))
        paint((distance < 1) & (inside if 0 < label < _HEART else depth > fat), label, tissue, jitter[tissue])
    paint(np.hypot(x, (y + 46) / 0.85) < 16 + 2 * np.cos(z * (2 * np.pi / 32)), 7, _BONE)
    paint(np.hypot(x + 8 + 4 * np.sin(z / 60), y + 20) < 10.5 + z / 60, 8, (170, 5))
    return structures, mean, deviation


def _parts(
    rng: np.random.Generator, at: Array, structures: NDArray[np.uint8], mean: Array, deviation: Array
) -> NDArray[np.uint8]:
    """Labels (z y x) of `PART_LABELS`; vena cava and adrenal glands are painted into mean HU and deviation too."""
    z, y, x = at
    labels = np.zeros_like(structures)

    def mark(name: str, where: NDArray[np.bool_]) -> None:
        labels[where] = PART_LABELS[name]

    def paint(name: str, where: NDArray[np.bool_], tissue: tuple[int, int]) -> None:
        mark(name, where)
        mean[where], deviation[where] = tissue

    hidden = {"heart": _HEART, "gallbladder": _GALLBLADDER, "hip_right": _HIP_RIGHT, "hip_left": _HIP_LEFT}
    for name, number in (LABELS | hidden).items():
        if name in PART_LABELS:
            mark(name, structures == number)
    fissure = z - 104 - 0.5 * (y + 4)  # height above it, mm
    right, left = structures == LABELS["lung_right"], structures == LABELS["lung_left"]
    mark("lung_lower_left", left)
    mark("lung_upper_left", left & (fissure > 0))
    mark("lung_lower_right", right)
    mark("lung_middle_right", right & (fissure > 0))
    mark("lung_upper_right", right & (fissure > 0) & (z > 112))
    for number, middle in enumerate(range(-96, 128, 32), start=1):
        ends = (z > middle - 16) | (number == 1), (z <= middle + 16) | (number == 7)
        mark(f"vertebra_{number}", (structures == LABELS["spine"]) & ends[0] & ends[1])
    for number in range(1, 5):
        rib = (structures == _RIB) & (np.abs(z - 0.4 * y - 6 - 24 * number) < 12)
        mark(f"rib_{number}_right", rib & (x > 0))
        mark(f"rib_{number}_left", rib & (x <= 0))
    paint("vena_cava", np.hypot(x - 15, y + 20) < 9, (150, 5))
    for name, center in _ADRENALS:
        offset = at - (np.asarray(center) + rng.uniform(-3, 3, 3))[:, None, None, None]
        paint(name, np.hypot(offset[0] / 10, np.hypot(offset[1], offset[2]) / 7) < 1, (60, 6))
    return labels


def _scan(rng: np.random.Generator, mean: Array, deviation: Array) -> NDArray[np.int16]:
    """(z y x) int16 HU: texture correlated over voxels, partial volume, a shift of the whole case, white noise."""
    texture = gaussian_filter(rng.standard_normal(mean.shape, np.float32), 1.0)
    image = gaussian_filter(mean + deviation * texture / texture.std(), 0.55)
    image = image + rng.uniform(-12, 12) + rng.uniform(8, 16) * rng.standard_normal(mean.shape, np.float32)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _write(path: Path, array: NDArray[np.generic], spacing: Spacing3, orientation: str) -> None:
    """Store a RAS (z y x) array with its axes turned to `orientation`; voxels keep their place in the world."""
    size = np.asarray(array.shape[::-1])
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (size - 1) / 2 + (3.5, -120.0, 410.0)
    image = nib.Nifti1Image(np.ascontiguousarray(array.transpose()), affine)
    image.header.set_xyzt_units("mm", "sec")
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation)).astype(int).tolist()
    make_folder(path.parent)
    write_atomically(path, lambda temporary: nib.save(image.as_reoriented(turn), temporary))
