"""Headers that cannot be right, whole files that look damaged, and files that are not what their name says."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from maskmed_zoo.data.file_kind import kind_of
from maskmed_zoo.data.formats import read_image, read_labels, write_labels
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.resample import check_resampled
from tests.conftest import refusal

SHAPE = (6, 5, 4)
VOXELS = np.arange(120, dtype=np.int16).reshape(SHAPE)
PIXDIM, QUATERNION, UNITS, VOX_OFFSET, SLOPE, INTERCEPT, DIM, QFORM, SROW = 76, 256, 123, 108, 112, 116, 40, 252, 280


def raw(*, codes: tuple[int, int] = (0, 2), units: int = 2, affine: np.ndarray | None = None) -> bytearray:
    """A NIfTI-1 file of 2 x 3 x 4 mm voxels with a qform of no turn, as bytes."""
    affine = np.diag([2, 3, 4, 1.0]) if affine is None else affine
    content = bytearray(nib.Nifti1Image(VOXELS, affine).to_bytes())
    struct.pack_into("<2h", content, QFORM, *codes)
    content[UNITS] = units
    return content


def put(path: Path, content: bytes | bytearray) -> Path:
    path.write_bytes(gzip.compress(bytes(content), 1) if path.suffix == ".gz" else bytes(content))
    return path


def patched(form: str, offset: int, *values: float, **how: object) -> bytearray:
    content = raw(**how)  # type: ignore[arg-type]
    struct.pack_into(form, content, offset, *values)
    return content


ONLY_QFORM, NO_CODES = {"codes": (1, 0)}, {"codes": (0, 0)}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *(
            (patched("<f", PIXDIM + 8, size, **how), "voxel sizes [2.0, ")
            for size in (0, -1, NAN, INF)
            for how in (ONLY_QFORM, NO_CODES)
        ),
        (raw(units=3), "field of view of 0.012 x 0.015 x 0.016 mm, of 6 x 5 x 4 voxels"),
        (patched("<3f", SROW, NAN, 0, 0), "affine is singular"),
        (patched("<f", SROW, 1e30), "affine is singular"),
        (patched("<f", SROW + 12, 1e8), "1e+08 mm from the origin"),
        (patched("<f", SROW, 1e-7), "field of view of 6e-07 x 15 x 16 mm"),
        (raw(units=5), "xyzt_units 5 is no code"),
        (patched("<h", DIM, 0), "dim[0] 0, expected 3"),
        (patched("<h", DIM, 8), "dim[0] 8, expected 3"),
        (patched("<h", DIM, -3), "dim[0] -3, expected 3"),
        (patched("<h", DIM + 2, -6), "shape (-6, 5, 4), expected numbers of voxels"),
        (patched("<3h", DIM + 2, 32767, 32767, 32767), "cut off"),
        (patched("<h", DIM + 6, 5), "cut off"),
        (patched("<h", 70, 12345), "data type 12345"),
        (patched("<h", 70, 0), "plain numbers"),
        *(
            (patched("<f", VOX_OFFSET, offset), f"vox_offset {offset:g}, expected 352")
            for offset in (0, 8, -1, 352.5, NAN, INF)
        ),
        (patched("<f", VOX_OFFSET, 1e9), "cut off"),
        (patched("<f", VOX_OFFSET, 368), "cut off"),
        (patched("<2f", SLOPE, 1, NAN), "scl_inter"),
        (patched("<h", QFORM + 2, 77), "sform_code 77 is none of NIfTI's"),
        (patched("<h", QFORM, -1), "qform_code -1 is none of NIfTI's"),
        (patched("<f", QUATERNION, 1.01, **ONLY_QFORM), "longer than 1"),
        (patched("<f", QUATERNION, NAN, **ONLY_QFORM), "longer than 1"),
        (raw() + bytes(3 * 2**20), "far more than the 592 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_headers_that_cannot_be_right(tmp_path, capfd, name, content, words):
    path = put(tmp_path / name, content)
    for read in (read_image, read_labels):
        message = refusal(read, path)
        assert message.startswith(f"{path}: ")
        assert words in message
        assert "\n" not in message
    assert capfd.readouterr().err == ""  # nibabel says nothing of its own


def test_the_unit_that_was_meant_is_named(tmp_path):
    message = refusal(read_image, put(tmp_path / "a.nii", raw(units=3)))
    assert "the header counts in micrometre; in mm it would be 12 x 15 x 16 mm: correct the unit" in message
    message = refusal(read_image, put(tmp_path / "a.nii", raw(units=1)))
    assert "12000 x 15000 x 16000 mm" in message
    assert "the header counts in metre; in mm it would be 12 x 15 x 16 mm" in message
    specimen = raw(units=2, affine=np.diag([0.01, 0.01, 0.4, 1.0]))  # 10 micrometres, stated in mm
    np.testing.assert_allclose(read_image(put(tmp_path / "b.nii", specimen)).spacing, (0.4, 0.01, 0.01), rtol=1e-6)


@pytest.mark.parametrize("slope", [0, NAN, INF, -INF])
def test_a_slope_that_is_none_scales_nothing(tmp_path, slope):
    path = put(tmp_path / "a.nii", patched("<2f", SLOPE, slope, 7))
    np.testing.assert_array_equal(read_image(path).array, VOXELS.transpose(2, 1, 0))


@pytest.mark.parametrize("codes", [(0, 0), (1, 0)])
def test_sizes_of_no_use_are_no_mistake_where_there_is_an_sform(tmp_path, codes):
    assert read_image(put(tmp_path / "a.nii", raw(codes=codes))).spacing == (4, 3, 2)
    path = put(tmp_path / "b.nii", patched("<4f", PIXDIM, 0, NAN, 0, -1))
    volume = read_image(path)
    assert volume.spacing == (4, 3, 2)
    write_labels(tmp_path / "o.nii.gz", np.ones(SHAPE[::-1], np.uint8), volume.geometry)
    assert SimpleITK.ReadImage(str(tmp_path / "o.nii.gz")).GetSpacing() == (2, 3, 4)


@pytest.mark.parametrize("b", [1 + 5e-7, 1 + 1e-5, 1 + 4e-4, -1 - 1e-6])
@pytest.mark.parametrize("qfac", [1, -1, 0, -2])
def test_a_quaternion_rounded_above_one_is_read_as_itk_does(tmp_path, b, qfac):
    content = patched("<3f", QUATERNION, *(b * np.array([0.6, 0, 0.8])), **ONLY_QFORM)
    struct.pack_into("<f", content, PIXDIM, qfac)
    struct.pack_into("<3f", content, QUATERNION + 12, 5, -6, 7)
    volume = read_image(put(tmp_path / "a.nii.gz", content))
    write_labels(tmp_path / "o.nii.gz", np.ones(volume.array.shape, np.uint8), volume.geometry)
    for path in (tmp_path / "a.nii.gz", tmp_path / "o.nii.gz"):
        image = SimpleITK.ReadImage(str(path))
        matrix = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        flip = np.diag([-1, -1, 1])  # ITK counts to the left and back
        np.testing.assert_allclose(volume.geometry.affine[:3, :3], flip @ matrix, atol=1e-3)
        np.testing.assert_allclose(volume.geometry.affine[:3, 3], flip @ image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(nib.load(tmp_path / "o.nii.gz").affine, volume.geometry.affine, atol=1e-5)


def test_sform_goes_before_qform(tmp_path):
    content = patched("<3f", QUATERNION, 0, 0, 1, codes=(1, 1))
    assert read_image(put(tmp_path / "a.nii", content)).geometry.affine[0, 0] == 2  # the qform says -2
    assert (
        read_image(put(tmp_path / "a.nii", patched("<3f", QUATERNION, 0, 0, 1, **ONLY_QFORM))).geometry.affine[0, 0]
        == -2
    )


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_little_behind_the_last_voxel_is_no_matter(tmp_path, name):
    np.testing.assert_array_equal(read_image(put(tmp_path / name, raw() + b"x" * 999)).array, VOXELS.transpose(2, 1, 0))


def test_gzip_in_several_parts_is_one_file_and_each_checksum_counts(tmp_path):
    content = bytes(raw())
    parts = [gzip.compress(content[:400]), gzip.compress(content[400:]), bytes(20)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(parts))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array, VOXELS.transpose(2, 1, 0))
    for position in (len(parts[0]) - 6, len(parts[0]) + len(parts[1]) - 6):
        damaged = bytearray(b"".join(parts))
        damaged[position] ^= 1
        (tmp_path / "b.nii.gz").write_bytes(damaged)
        assert "not a readable NIfTI file (BadGzipFile: CRC" in refusal(read_image, tmp_path / "b.nii.gz")


def test_what_a_header_promises_and_what_gzip_unfolds_cost_nothing(tmp_path):
    bomb, promise = tmp_path / "bomb.nii.gz", tmp_path / "promise.nii.gz"
    with gzip.GzipFile(bomb, "wb", 1) as file:
        file.write(raw())
        for _ in range(100):
            file.write(bytes(2**20))
    put(promise, patched("<3h", DIM + 2, 2000, 2000, 2000))
    tracemalloc.start()
    start = time.perf_counter()
    assert "far more than the 592 bytes" in refusal(read_image, bomb)
    assert "16000000352 bytes promised" in refusal(read_image, promise)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    assert time.perf_counter() - start < 5
    tracemalloc.stop()


def test_more_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = put(tmp_path / "a.nii.gz", raw())
    monkeypatch.setattr("maskmed_zoo.memory.available", lambda: 1000)
    assert f"{path}: an image of 6 x 5 x 4 voxels needs 0.0 GiB of memory" in refusal(read_image, path)
    monkeypatch.undo()

    def exhausted(*_: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr("maskmed_zoo.data.formats.nifti.apply_read_scaling", exhausted)
    assert "needs more memory than there is (Unable to allocate 9 TiB)" in refusal(read_image, path)
    assert f"{path}: this label map needs more" in refusal(read_labels, path)


# --- what cannot be written back --------------------------------------------------------------------------------------


def test_images_whose_label_map_could_not_be_written_are_refused(tmp_path):
    long = np.zeros((2, 1, 32768), np.uint8)
    nib.save(nib.Nifti2Image(long, np.diag([1, 1, 0.01, 1])), tmp_path / "long.nii.gz")
    assert "up to 32767 voxels along an axis" in refusal(read_image, tmp_path / "long.nii.gz")
    far = np.diag([0.001, 0.001, 0.001, 1])
    far[:3, 3] = 123456.789
    nib.save(nib.Nifti2Image(np.zeros((999, 2, 2), np.uint8), far * [[2], [1], [1], [1]]), tmp_path / "far.nii.gz")
    assert "32 bits do not hold this affine" in refusal(read_image, tmp_path / "far.nii.gz")
    two = nib.Nifti2Image(VOXELS, np.diag([2, 3, 4, 1.0]))
    for units in (258, -2):
        two.header["xyzt_units"] = units
        (tmp_path / "two.nii").write_bytes(two.to_bytes())
        assert f"xyzt_units {units} is no code" in refusal(read_image, tmp_path / "two.nii")


# --- what a file is ---------------------------------------------------------------------------------------------------


def hdf5() -> bytes:
    return b"\x89HDF\r\n\x1a\n" + bytes(600)


def archive() -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        file.writestr("a.nii", bytes(raw()))
    return memory.getvalue()


def analyze() -> bytes:
    return nib.AnalyzeImage(VOXELS, np.eye(4)).header.binaryblock + bytes(300)


def pair() -> bytes:
    return bytes(nib.Nifti1Pair(VOXELS, np.eye(4)).header.binaryblock) + bytes(4)


KINDS = {
    "a zip archive": archive(),
    "bzip2": bz2.compress(bytes(raw())),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(600),
    "DICOM": bytes(128) + b"DICM" + bytes(600),
    "NRRD": b"NRRD0004\n# Complete NRRD file format",
    "HDF5 or MINC 2": hdf5(),
    "an HTML page": b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "empty": b"",
    "an Analyze 7.5 header": analyze(),
    "the header of a pair .hdr and .img": pair(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "plain.nii.gz"])
def test_other_kinds_of_files_are_called_by_their_names(tmp_path, kind, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(KINDS[kind]) if name == "a.nii.gz" else KINDS[kind])
    message = refusal(read_image, path)
    assert message.startswith(f"{path}: not a readable NIfTI file (")
    assert kind in message


def test_compression_and_name_disagree(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(raw())
    assert "not gzip-compressed as its name says); compress it with gzip, or rename it to a.nii" in refusal(
        read_image, tmp_path / "a.nii.gz"
    )
    (tmp_path / "b.nii").write_bytes(gzip.compress(raw()))
    assert "gzip-compressed, its name does not say so); rename it to b.nii.gz" in refusal(
        read_image, tmp_path / "b.nii"
    )
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(gzip.compress(raw())))
    assert "(gzip-compressed" in refusal(read_image, tmp_path / "c.nii.gz")
    assert kind_of(bytes(raw())) is None


def test_what_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    assert "is no plain file" in refusal(read_image, tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("/dev/zero")
    assert "is no plain file" in refusal(read_image, tmp_path / "b.nii.gz")


# --- sizes at another spacing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted", "words"),
    [
        ((20, 20, 20), 1000.0, 1.0, "20000 x 20000 x 20000 at the spacing 1 x 1 x 1 mm, far more"),
        ((20, 20, 20), 25.0, 1.0, "500 x 500 x 500 at the spacing 1 x 1 x 1 mm, far more"),
        ((9, 20, 20), 0.1, 1.0, "1 x 2 x 2 at the spacing 1 x 1 x 1 mm, far fewer"),
        ((500, 20, 20), 0.005, 1.0, "far fewer"),
        ((20, 20, 20), 20.0, 1.0, None),
        ((8, 20, 20), 0.1, 1.0, None),
        ((1, 512, 512), 0.3, 1.0, None),
    ],
)
def test_resampled_sizes_are_bounded_both_ways(shape, spacing, wanted, words):
    geometry = geometry_of(np.empty(shape, np.uint8), spacing=(spacing,) * 3)
    if words is None:
        check_resampled(geometry, (wanted,) * 3, 4)
    else:
        assert words in refusal(check_resampled, geometry, (wanted,) * 3, 4)


def test_resampled_sizes_are_bounded_by_memory(monkeypatch):
    geometry = geometry_of(np.empty((20, 20, 20), np.uint8), spacing=(2, 2, 2))
    monkeypatch.setattr("maskmed_zoo.memory.available", lambda: 4 * 3 * 40**3)
    check_resampled(geometry, (1, 1, 1), 3)
    assert "40 x 40 x 40 at the spacing 1 x 1 x 1 mm, which needs" in refusal(check_resampled, geometry, (1, 1, 1), 4)
