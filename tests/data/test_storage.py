"""Images in 16 bits: what is lost, what is not kept so, and that slices come in order."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.normalize import Normalized, Scaling
from maskmed_zoo.data.preprocess import Preprocessing
from maskmed_zoo.data.storage import LARGEST_ERROR, Coding, ImageWriter, Spread, StoredImage, coding_of

AS_IT_IS = Scaling(0.0, 1.0)


def spread(values: np.ndarray) -> Spread:
    return Spread.of(Normalized(values.reshape(1, 1, -1), AS_IT_IS))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 400), scale=st.floats(1e-3, 1e4), shift=st.floats(-1e5, 1e5))
def test_a_value_changes_by_less_than_a_thousandth_of_the_deviation(seed, size, scale, shift):
    rng = np.random.default_rng(seed)
    values = (rng.standard_t(3, size) * scale + rng.choice([0, shift])).astype(np.float32)
    deviation = values.std(dtype=np.float64)  # in float32 it is wrong where values lie far from zero
    coding = coding_of(spread(values))
    if coding is None:
        assert np.ptp(values) > 120 * deviation
        return
    back = coding.decoded(coding.encoded(values))
    rounding = 2 * np.spacing(np.abs(values).max())  # what float32 itself loses there
    assert np.abs(back - values).max() <= LARGEST_ERROR * deviation + rounding


def test_zero_stays_zero_and_a_constant_stays_itself():
    values = np.random.default_rng(0).normal(0.3, 1, 1000).astype(np.float32)
    values[::7] = 0
    coding = coding_of(spread(values))
    assert coding is not None
    assert not coding.decoded(coding.encoded(values))[::7].any()
    flat = np.full(9, 12.25, np.float32)
    coding = coding_of(spread(flat))
    assert coding is not None
    np.testing.assert_array_equal(coding.decoded(coding.encoded(flat)), flat)


def test_few_values_far_from_all_others_are_not_rounded():
    values = np.random.default_rng(0).normal(size=10**6).astype(np.float32)
    assert coding_of(spread(values)) is not None
    values[0] = 1e4
    assert coding_of(spread(values)) is None


@pytest.mark.parametrize("is_coded", [True, False])
def test_what_is_written_is_read_in_parts(tmp_path: Path, is_coded: bool):
    image = np.random.default_rng(1).normal(size=(2, 7, 4, 5)).astype(np.float32)
    image[1] *= 30
    found = [coding_of(spread(channel)) for channel in image]
    codings = tuple(coding for coding in found if coding) if is_coded else None
    with ImageWriter(tmp_path / "image.npy", image.shape, codings) as writer:
        for channel, target in zip(image, writer.channels, strict=True):
            for part in (slice(0, 3), slice(3, 7)):
                target[part] = channel[part]
    array = np.load(tmp_path / "image.npy", mmap_mode="r")
    assert array.dtype == (np.uint16 if is_coded else np.float32)
    stored = StoredImage(array, codings)
    assert stored.shape == image.shape
    for index in (slice(None), 1, (slice(None), slice(2, 5), slice(1, 3)), (1, slice(0, 2)), (slice(1, 2), 3)):
        part = stored[index]
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, image[index], atol=3e-3 if is_coded else 0)
    np.testing.assert_array_equal(np.asarray(stored), stored[:])


def test_slices_are_written_in_order(tmp_path: Path):
    with ImageWriter(tmp_path / "image.npy", (1, 4, 2, 2), (Coding(1.0, 0.0, 0.0),)) as writer:
        (channel,) = writer.channels
        with pytest.raises(ValueError, match="slice 2 of channel 0 is not the next one"):
            channel[2:4] = np.zeros((2, 2, 2), np.float32)


def test_a_case_that_sixteen_bits_do_not_hold_is_kept_in_float32(dataset: Path, tmp_path: Path):
    opened = open_dataset(dataset)
    path, label, shape = opened.cases[0].images[0], opened.cases[0].label, (40, 40, 40)
    assert label is not None
    affine = nib.load(path).affine
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[0, 0, 0] = 1e7
    nib.save(nib.Nifti1Image(values, affine), path)
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), affine), label)
    _, _, geometry = load_case(opened.cases[0], opened)
    cache = CaseCache(tmp_path / "cache", opened, Preprocessing(geometry.spacing, ("none",)))
    cache.prepare(opened.cases[:1])
    cached = cache.load(opened.cases[0])
    assert cached.codings is None
    assert np.load(cached.folder / "image.npy", mmap_mode="r").dtype == np.float32
    assert set(np.sort(cached.image[0], axis=None).tolist()) == set(values.ravel().tolist())
