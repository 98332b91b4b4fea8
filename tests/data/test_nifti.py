"""Files in and out: orientation, world positions, headers, and what is refused."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation

from maskmed_zoo.data.formats import nifti, read_image, read_labels, write_labels
from maskmed_zoo.data.image import Geometry, Volume, check_same_geometry
from tests.conftest import refusal

DATA = Path(__file__).parents[2].parent / "shared" / "data"
AXES = ("LR", "PA", "IS")
ORIENTATIONS = ["".join(letters) for order in itertools.permutations(AXES) for letters in itertools.product(*order)]
SIZES = {"L": (4, 0.7), "P": (5, 1.1), "I": (6, 2.5)}  # voxels and mm along left-right, posterior-anterior, inferior-…


def oriented_affine(code: str) -> tuple[np.ndarray, Any]:
    """Affine and shape of a small volume stored as `code`, voxel axes named by where they point to."""
    affine, shape = np.eye(4), []
    affine[:3, :3] = 0
    for axis, letter in enumerate(code):
        world = next(i for i, pair in enumerate(AXES) if letter in pair)
        count, size = SIZES[AXES[world][0]]
        affine[world, axis] = size if letter == AXES[world][1] else -size
        shape.append(count)
    affine[:3, 3] = (-31.5, 12.25, 480.0)
    return affine, tuple(shape)


def rotated(affine: np.ndarray, degrees: tuple[float, float, float]) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turn = np.eye(4)
    turn[:3, :3] = rz @ ry @ rx
    return turn @ affine


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: int) -> Path:
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def marked_world(path: Path) -> np.ndarray:
    """World position of the single voxel 7, by nibabel alone."""
    image = nib.load(path)
    (index,) = np.argwhere(np.asarray(image.dataobj) == 7)
    return image.affine @ [*index, 1]


def assert_same_grid(written: Path, original: Path) -> None:
    ours, theirs = nib.load(written), nib.load(original)
    assert ours.shape == theirs.shape[:3]
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    for name in ("xyzt_units", *nifti.HEADER_FIELDS):
        np.testing.assert_array_equal(ours.header[name], theirs.header[name], err_msg=name)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("turn", [(0, 0, 0), (9, -14, 21)], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_round_trip_keeps_grid_units_and_marked_voxel(tmp_path, code, turn):
    affine, shape = oriented_affine(code)
    affine = rotated(affine, turn)
    assert "".join(aff2axcodes(affine)) == code
    stored = np.zeros(shape, np.int16)
    stored[1, 2, 3] = 7
    source = save(tmp_path / "in.nii.gz", stored, affine, xyzt_units=10, qform_code=1, sform_code=3)
    volume = read_image(source)
    assert volume.array.shape == volume.geometry.canonical_shape == (6, 5, 4)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.spacing, (2.5, 1.1, 0.7), rtol=1e-6)
    # independent of our code: nibabel's own canonical image has the same voxels, axes reversed
    canonical = nib.as_closest_canonical(nib.load(source))
    np.testing.assert_array_equal(volume.array, np.asarray(canonical.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(volume.geometry.canonical_affine, canonical.affine, atol=1e-5)
    labels = (volume.array == 7).astype(np.uint8) * 7
    write_labels(tmp_path / "out.nii.gz", labels, volume.geometry)
    assert_same_grid(tmp_path / "out.nii.gz", source)
    np.testing.assert_allclose(marked_world(tmp_path / "out.nii.gz"), marked_world(source), atol=1e-6)
    np.testing.assert_array_equal(read_labels(tmp_path / "out.nii.gz").array, labels)


def test_canonical_axes_point_right_front_and_up(tmp_path):
    affine, shape = oriented_affine("PLI")
    world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    for axis in range(3):  # store a world coordinate as intensity: it must rise along the canonical axis
        volume = read_image(save(tmp_path / f"{axis}.nii", world[..., axis].astype(np.float32), affine))
        steps = [np.diff(volume.array, axis=a).ravel() for a in range(3)]
        assert (steps[2 - axis] > 0).all()
        assert all(np.allclose(steps[a], 0, atol=1e-4) for a in range(3) if a != 2 - axis)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (2, 4)])
def test_codes_and_forms_survive_as_they_were(tmp_path, codes):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), rotated(np.diag([1, 2, 3, 1.0]), (5, 6, 7)))
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(rotated(np.diag([1, 2, 3, 1.0]), (5, 6, 7)), codes[0])
    image.header["sform_code"] = codes[1]
    (tmp_path / "in.nii.gz").write_bytes(gzip.compress(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes()))
    volume = read_labels(tmp_path / "in.nii.gz")
    assert (
        nib.load(tmp_path / "in.nii.gz").header["qform_code"],
        nib.load(tmp_path / "in.nii.gz").header["sform_code"],
    ) == codes
    write_labels(tmp_path / "out.nii.gz", volume.array, volume.geometry)
    assert_same_grid(tmp_path / "out.nii.gz", tmp_path / "in.nii.gz")


@pytest.mark.parametrize(("unit", "code", "factor"), [("meter", 1, 1000), ("mm", 2, 1), ("micron", 3, 0.001)])
def test_spacing_is_in_mm_whatever_the_file_counts_in(tmp_path, unit, code, factor):
    edges = np.array([2, 3, 4]) / {1000: 10, 1: 1, 0.001: 0.01}[factor]  # so that there is a field of view of cm to m
    path = save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.uint8), np.diag([*edges, 1.0]), xyzt_units=code)
    np.testing.assert_allclose(read_image(path).spacing, edges[::-1] * factor, rtol=1e-6)


def test_scaled_big_endian_nifti2_and_plain_nii_are_read(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    scaled = nib.Nifti1Image(values, np.eye(4))
    scaled.header.set_slope_inter(2, -1024)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    stored = np.asarray(nib.load(tmp_path / "scaled.nii.gz").dataobj)
    big = nib.Nifti1Image(values.astype(">f4"), np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii")
    nib.save(nib.Nifti2Image(values, np.eye(4)), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "scaled.nii.gz").array, stored.transpose(2, 1, 0))
    for name in ("big.nii", "two.nii.gz"):
        volume = read_image(tmp_path / name)
        np.testing.assert_array_equal(volume.array, values.transpose(2, 1, 0))
        assert volume.array.dtype == np.float32
        assert volume.array.flags.writeable
        write_labels(tmp_path / "out.nii.gz", volume.array.astype(np.uint8), volume.geometry)
        np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, np.eye(4))


def test_trailing_axes_of_one_are_dropped(tmp_path):
    volume = read_image(save(tmp_path / "a.nii.gz", np.ones((2, 3, 4, 1), np.float32)))
    assert volume.geometry.shape == (2, 3, 4)
    write_labels(tmp_path / "out.nii.gz", np.ones((4, 3, 2), np.uint8), volume.geometry)
    assert nib.load(tmp_path / "out.nii.gz").shape == (2, 3, 4)


def test_integers_stored_as_floats_are_labels(tmp_path):
    volume = read_labels(save(tmp_path / "a.nii.gz", np.array([[[0.0, 3.0, 2.00001]]], np.float32)))
    assert volume.array.dtype == np.int16
    assert volume.array.ravel().tolist() == [0, 3, 2]


def test_a_geometry_without_header_is_written_by_its_affine(tmp_path):
    affine, shape = oriented_affine("PLI")
    geometry = Geometry(affine, shape)
    write_labels(tmp_path / "a.nii.gz", np.ones(geometry.canonical_shape, bool), geometry)
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6)
    assert image.shape == shape
    assert image.header.get_xyzt_units()[0] == "mm"


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("highest", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_written_type_depends_on_the_highest_label(tmp_path, highest, dtype):
    geometry = Geometry(np.eye(4), (2, 2, 2))
    labels = np.full((2, 2, 2), highest, np.int64)
    write_labels(tmp_path / "a.nii.gz", labels, geometry)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == dtype
    assert (np.asarray(image.dataobj) == highest).all()


def test_same_labels_give_the_same_bytes(tmp_path):
    geometry = Geometry(np.eye(4), (2, 2, 2))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, np.ones((2, 2, 2), np.uint8), geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    geometry = Geometry(np.eye(4), (2, 2, 2))
    target = tmp_path / "a.nii.gz"
    write_labels(target, np.ones((2, 2, 2), np.uint8), geometry)
    before = target.read_bytes()

    def full(self: gzip.GzipFile, content: bytes) -> int:
        write(self, content[:10])
        raise OSError(28, "No space left on device")

    write = gzip.GzipFile.write
    monkeypatch.setattr(gzip.GzipFile, "write", full)
    message = refusal(write_labels, target, np.zeros((2, 2, 2), np.uint8), geometry)
    assert str(target) in message
    assert "No space left" in message
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("a.nii", np.zeros((2, 2, 2), np.uint8), ".nii.gz"),
        ("a.nii.gz", np.zeros((2, 2, 3), np.uint8), "(2, 2, 3)"),
        ("a.nii.gz", np.full((2, 2, 2), -1), "-1"),
        ("a.nii.gz", np.full((2, 2, 2), 65536), "65536"),
        ("a.nii.gz", np.full((2, 2, 2), np.nan), "float64"),
        ("none/a.nii.gz", np.zeros((2, 2, 2), np.uint8), "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, array, words):
    message = refusal(write_labels, tmp_path / name, array, Geometry(np.eye(4), (2, 2, 2)))
    assert str(tmp_path / name) in message
    assert words in message
    assert not list(tmp_path.iterdir())


# --- refusals when reading --------------------------------------------------------------------------------------------


def test_missing_file_and_other_formats(tmp_path):
    assert "no such file" in refusal(read_image, tmp_path / "a.nii.gz")
    assert "convert it to NIfTI" in refusal(read_image, tmp_path / "a.nrrd")
    (tmp_path / "folder.nii.gz").mkdir()
    assert "no such file" in refusal(read_image, tmp_path / "folder.nii.gz")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\0" * 4000, gzip.compress(b"hello" * 1000, mtime=0)],
    ids=["empty", "text", "zeros", "zipped text"],  # workers must agree on the names
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_not_nifti(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    message = refusal(read_image, tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: not a readable NIfTI file (")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95, 0.9999])
def test_truncated_gz_is_noticed_wherever_it_ends(tmp_path, kept):
    noise = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = refusal(read_image, path)
    assert str(path) in message
    assert "copy" in message


def test_truncated_nii_and_flipped_byte(tmp_path):
    noise = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    plain = save(tmp_path / "a.nii", noise)
    plain.write_bytes(plain.read_bytes()[:-40])
    assert "cut off" in refusal(read_image, plain)
    zipped = save(tmp_path / "b.nii.gz", noise)
    content = bytearray(zipped.read_bytes())
    content[-6] ^= 0xFF  # in the checksum: nibabel alone would not look at it
    zipped.write_bytes(content)
    assert "not a readable" in refusal(read_image, zipped)


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (2, 3, 4, 1, 3), (5, 6)])
def test_not_3d(tmp_path, shape):
    message = refusal(read_image, save(tmp_path / "a.nii.gz", np.zeros(shape, np.float32)))
    assert "expected 3-D" in message
    assert str(shape) in message


def test_non_finite_voxels_are_counted(tmp_path):
    values = np.zeros((3, 4, 5), np.float32)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    path = save(tmp_path / "a.nii.gz", values)
    for read in (read_image, read_labels):
        assert "3 of 60 voxels are NaN or infinite" in refusal(read, path)
    assert "1 of 8" in refusal(read_image, save(tmp_path / "b.nii.gz", np.pad([[[1e300]]], (0, 1))))


def test_empty_axis(tmp_path):
    assert "empty axis" in refusal(read_image, save(tmp_path / "a.nii.gz", np.zeros((3, 0, 4), np.uint8)))


@pytest.mark.parametrize(
    "matrix",
    [[[0, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 0], [1, 1, 0], [0, 0, 1]], [[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]]],
)
def test_singular_affine(tmp_path, matrix):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    for name, row in zip("xyz", matrix, strict=True):
        image.header[f"srow_{name}"] = [*row, 0]
    (tmp_path / "a.nii").write_bytes(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes())
    assert "affine is singular" in refusal(read_image, tmp_path / "a.nii")


def test_colour_images_and_wrong_labels(tmp_path):
    colour = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "plain numbers" in refusal(read_image, save(tmp_path / "c.nii", colour))
    half = np.zeros((2, 2, 2), np.float32)
    half[0, 0] = 0.5
    assert "2 voxels are not integers" in refusal(read_labels, save(tmp_path / "h.nii", half))
    assert "40000" in refusal(read_labels, save(tmp_path / "big.nii", np.full((2, 2, 2), 40000, np.uint16)))


# --- comparing grids --------------------------------------------------------------------------------------------------


def volume(affine: np.ndarray, shape: tuple[int, int, int] = (100, 100, 100), name: str = "a.nii.gz") -> Volume:
    return Volume(np.zeros(1), Geometry(affine, shape), Path(name))


def test_same_geometry_tolerates_rounding_only():
    affine = rotated(np.diag([0.9765625, 0.9765625, 2.5, 1]), (3, 4, 5))
    affine[:3, 3] = (-250.123, 180.7, -912.3)
    check_same_geometry(volume(affine), volume(affine.astype(np.float32).astype(np.float64)))
    scaled, moved, turned = affine.copy(), affine.copy(), rotated(affine, (0, 0, 0.01))
    scaled[:3, 0] *= 1.001  # 0.1 mm after 100 voxels, though no entry differs by 0.001
    moved[1, 3] += 0.02
    for other in (scaled, moved, turned):
        message = refusal(check_same_geometry, volume(affine), volume(other, name="b.nii.gz"))
        assert "b.nii.gz: voxels lie up to" in message
        assert "a.nii.gz" in message
    message = refusal(check_same_geometry, volume(affine), volume(affine, (100, 100, 99), "b.nii.gz"))
    assert "(99, 100, 100)" in message


def test_same_grid_in_another_orientation_is_the_same(tmp_path):
    affine, shape = oriented_affine("RAS")
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    turn: Any = nib.orientations.ornt_transform(io_orientation(affine), axcodes2ornt("PLI"))
    other = image.as_reoriented(turn)
    nib.save(other, tmp_path / "b.nii.gz")
    ours, theirs = (
        read_image(save(tmp_path / "a.nii.gz", np.zeros(shape, np.uint8), affine)),
        read_labels(tmp_path / "b.nii.gz"),
    )
    assert theirs.geometry.shape != ours.geometry.shape
    check_same_geometry(ours, theirs)
    flipped = affine.copy()
    flipped[0, 0] *= -1  # axis direction reversed, origin kept: another place in the world
    assert "mm" in refusal(check_same_geometry, volume(affine, shape), volume(flipped, shape))


# --- real files -------------------------------------------------------------------------------------------------------


def real(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the example data is not beside the project: {path.name}")
    return path


def test_head_and_neck_ct_is_stored_posterior_left_inferior():
    image, label = (
        real("Dataset101_HeadNeckCT", "imagesTr", "pt_1_0000.nii.gz"),
        real("Dataset101_HeadNeckCT", "labelsTr", "pt_1.nii.gz"),
    )
    assert aff2axcodes(nib.load(image).affine) == ("P", "L", "I")
    ct, labels = read_image(image), read_labels(label)
    check_same_geometry(ct, labels)
    assert ct.array.shape == (128, 80, 64)
    np.testing.assert_allclose(ct.spacing, (2.5, 3.906, 3.906), atol=1e-3)
    centre = {v: np.argwhere(labels.array == v).mean(axis=0) for v in (1, 2, 3, 4, 5)}
    assert centre[4][2] < centre[3][2]  # x rises to the right: the left parotid comes first
    assert centre[1][0] > centre[2][0]  # z rises upwards: brainstem above cord
    assert centre[5][1] > centre[2][1]  # y rises to the front: mandible before cord


def test_unlabelled_ct_round_trip(tmp_path):
    source = real("totalsegmentator_examples", "unlabelled_ct_1p5mm.nii.gz")
    ct = read_image(source)
    labels = (ct.array > 200).astype(np.uint8)
    write_labels(tmp_path / "out.nii.gz", labels, ct.geometry)
    assert_same_grid(tmp_path / "out.nii.gz", source)
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), np.asarray(nib.load(source).dataobj) > 200
    )
