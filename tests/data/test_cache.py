"""The cache: what it holds, when it is rebuilt, and that nothing unfinished is ever taken for whole."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maskmed_zoo.data import cache as module
from maskmed_zoo.data.cache import LIMIT, CachedCase, CaseCache
from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.data.fingerprint import IntensityStats, fingerprint_dataset
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.data.storage import LARGEST_ERROR
from maskmed_zoo.errors import DataError, MemoryShortageError, OutputError
from maskmed_zoo.labels import Labels

NAMES = ("a", "b", "c")
SPACING = (1.5, 1.0, 1.0)
STATS = (IntensityStats(100.0, 90.0, -50.0, 300.0), IntensityStats(0.0, 1.0, 0.0, 1.0))


def how(spacing: tuple[float, float, float] = SPACING, *, use_mask_for_norm: bool = False) -> Preprocessing:
    return Preprocessing(spacing, ("ct", "zscore"), STATS, use_mask_for_norm)


def write_case(root: Path, name: str, seed: int, size: int = 12) -> None:
    rng = np.random.default_rng(seed)
    shape = (size, size + 1, size + 2)
    labels = np.zeros(shape, np.uint8)
    labels[2:6, 2:8, 2:9] = 1
    labels[6:9, 2:8, 2:9] = 2
    labels[9:, :2] = 3
    for channel in range(2):
        values = rng.normal(100 * seed, 20, shape).astype(np.float32) + 50 * labels
        nib.save(nib.Nifti1Image(values, np.diag([-1, -1, 2, 1.0])), root / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
    nib.save(nib.Nifti1Image(labels, np.diag([-1, -1, 2, 1.0])), root / "labelsTr" / f"{name}.nii.gz")


@pytest.fixture
def dataset(tmp_path: Path) -> RawDataset:
    root = tmp_path / "Dataset900_Toy"
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    for seed, name in enumerate(NAMES):
        write_case(root, name, seed)
    content = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "x": 1, "y": 2, "ignore": 3}}
    (root / "dataset.json").write_text(json.dumps(content))
    return open_dataset(root)


@pytest.fixture
def cache(tmp_path: Path, dataset: RawDataset) -> CaseCache:
    return CaseCache(tmp_path / "cache", dataset, how())


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Identifiers of the cases that are read from their source files, in order."""
    seen: list[str] = []

    def counted(case: Case, dataset: RawDataset):
        seen.append(case.identifier)
        return load_case(case, dataset)

    monkeypatch.setattr(module, "load_case", counted)
    return seen


def leftovers(cache: CaseCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.name not in NAMES)


def test_a_prepared_case_holds_what_it_should(cache, dataset):
    case = dataset.cases[1]
    cache.prepare([case])
    cached = cache.load(case)
    image, labels, geometry = load_case(case, dataset)
    cropped = crop_and_normalize(image, labels, geometry, how(), values=2)
    image, labels = cropped.image(), cropped.resampled_labels()
    assert image.shape != load_case(case, dataset)[0].shape
    for channel, one in enumerate(image):
        assert np.abs(cached.image[channel] - one).max() <= LARGEST_ERROR * one.std()
    np.testing.assert_array_equal(cached.labels, labels)
    for name, dtype in (("image", np.uint16), ("labels", np.int8)):
        array = np.load(cache.folder / "b" / f"{name}.npy", mmap_mode="r")
        assert array.dtype == dtype
    assert isinstance(cached.labels, np.memmap)
    assert not cached.labels.flags.writeable
    assert cached.image.shape == cached.shape == image.shape
    assert set(cached.coordinates) == {1, 2}  # 'ignore' is no foreground
    for label, places in cached.coordinates.items():
        assert {tuple(p) for p in places} == {tuple(p) for p in np.argwhere(labels == label)}
    assert leftovers(cache) == []


def test_coordinates_are_limited_seeded_and_spread(cache, dataset, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 50)
    case = dataset.cases[0]
    cache.prepare([case])
    first = cache.load(case)
    labels = np.asarray(first.labels)
    for label, places in first.coordinates.items():
        assert places.shape == (50, 3)
        assert len({tuple(p) for p in places}) == 50
        assert (labels[tuple(places.T)] == label).all()
        assert places[:, 0].max() > np.argwhere(labels == label)[:, 0].mean()  # not only the first voxels
    (cache.folder / "a" / "case.json").unlink()
    cache.prepare([case])
    again = cache.load(case)
    for label, places in first.coordinates.items():
        np.testing.assert_array_equal(again.coordinates[label], places)
    assert LIMIT == 10_000
    monkeypatch.setattr(module, "SHARE", 0.5)
    (cache.folder / "a" / "case.json").unlink()
    cache.prepare([case])
    for label, places in cache.load(case).coordinates.items():
        assert len(places) == max(50, -(-np.count_nonzero(labels == label) // 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_only_what_is_missing_or_changed_is_built(cache, dataset, built, workers):
    calls: list[tuple[int, int]] = []
    cache.prepare(dataset.cases[:2], workers, lambda *numbers: calls.append(numbers))
    assert sorted(built) == ["a", "b"]
    assert calls == [(1, 2), (2, 2)]
    cache.prepare(dataset.cases, workers)
    assert sorted(built) == ["a", "b", "c"]
    before = np.array(cache.load(dataset.cases[1]).image)
    write_case(dataset.root, "b", seed=9, size=13)
    cache.prepare(dataset.cases, workers)
    assert sorted(built) == ["a", "b", "b", "c"]
    assert cache.load(dataset.cases[1]).image.shape != before.shape
    status = dataset.cases[0].images[1].stat()
    os.utime(dataset.cases[0].images[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    cache.prepare(dataset.cases, workers)
    assert sorted(built) == ["a", "a", "b", "b", "c"]
    assert leftovers(cache) == []


def test_workers_change_nothing(tmp_path, dataset):
    caches = [CaseCache(tmp_path / name, dataset, how()) for name in ("one", "two")]
    for workers, cache in zip((0, 3), caches, strict=True):
        cache.prepare(dataset.cases, workers)
    for case in dataset.cases:
        one, two = (cache.load(case) for cache in caches)
        for name in ("image", "labels"):
            np.testing.assert_array_equal(np.asarray(getattr(one, name)), np.asarray(getattr(two, name)))


def test_format_labels_and_spacing_have_their_own_entries(tmp_path, cache, dataset, built, monkeypatch):
    cache.prepare(dataset.cases[:1])
    other = CaseCache(tmp_path / "cache", dataset, how((2, 2, 2)))
    assert other.folder != cache.folder
    assert other.folder.parent == cache.folder.parent == tmp_path / "cache"
    other.prepare(dataset.cases[:1])
    assert built == ["a", "a"]
    relabelled = RawDataset(
        dataset.root, "x", dataset.channels, Labels({"background": 0, "x": 1, "y": 2, "z": 3}), dataset.cases
    )
    CaseCache(tmp_path / "cache", relabelled, how()).prepare(dataset.cases[:1])
    assert len(built) == 3
    assert set(cache.load(dataset.cases[0]).coordinates) == {1, 2, 3}
    cache.prepare(dataset.cases[:1])
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    cache.prepare(dataset.cases[:1])
    assert len(built) == 5


def test_what_the_network_sees_decides_the_folder(tmp_path, cache, dataset):
    others = [how(use_mask_for_norm=True), Preprocessing(SPACING, ("ct", "none"), STATS)]
    others.append(Preprocessing(SPACING, ("ct", "zscore"), (IntensityStats(101.0, 90.0, -50.0, 300.0), STATS[1])))
    folders = {CaseCache(tmp_path / "cache", dataset, each).folder for each in others}
    assert len(folders | {cache.folder}) == 4
    unused = Preprocessing(SPACING, ("ct", "zscore"), (STATS[0], IntensityStats(9.0, 9.0, 9.0, 9.0)))
    assert CaseCache(tmp_path / "cache", dataset, unused).folder == cache.folder


def test_a_fingerprint_needs_no_second_reading(cache, dataset, monkeypatch):
    cache.prepare(dataset.cases[:2])
    expected = fingerprint_dataset(dataset).intensities
    read: list[str] = []
    monkeypatch.setattr(
        "maskmed_zoo.data.fingerprint.load_case", lambda case, of: read.append(case.identifier) or load_case(case, of)
    )
    assert fingerprint_dataset(dataset, folder=cache.folder.parent).intensities == expected
    assert read == ["c"]


def test_background_outside_the_object_is_marked(tmp_path, dataset):
    for path in dataset.cases[0].images:
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[:2], values[:, -3:], values[9:, :2] = 0, 0, 0
        values[2:4, 0] = 0
        nib.save(nib.Nifti1Image(values, image.affine), path)
    cache = CaseCache(tmp_path / "cache", dataset, how((2.0, 1.0, 1.0), use_mask_for_norm=True))
    cache.prepare(dataset.cases[:1])
    cached = cache.load(dataset.cases[0])
    assert cached.labels.shape[2] == 10
    assert {-1, 0, 1, 2} <= set(np.unique(cached.labels).tolist())
    assert not cached.image[1][np.asarray(cached.labels) == -1].any()


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_disk_that_cannot_hold_the_cases_is_told_before(cache, dataset, built, monkeypatch, is_measured):
    if is_measured:
        fingerprint_dataset(dataset, folder=cache.folder.parent)
    usage = shutil.disk_usage("/")._replace(free=12_345)
    monkeypatch.setattr("maskmed_zoo.data.cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        OutputError, match=r"preprocessed cases need about 0\.00 GiB, the disk has 0\.00 free; free some"
    ):
        cache.prepare(dataset.cases, 2)
    assert built == ([] if is_measured else ["a"])
    monkeypatch.undo()
    cache.prepare(dataset.cases)
    monkeypatch.setattr("maskmed_zoo.data.cache.shutil.disk_usage", lambda _: usage)
    cache.prepare(dataset.cases)  # nothing is missing


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "cut",
    [("image.npy", KeyboardInterrupt), ("image.npy", FULL), ("case.json", KeyboardInterrupt), ("case.json", FULL)],
)
def test_an_interrupted_case_is_not_taken_for_whole(cache, dataset, built, monkeypatch, cut):
    step, error = cut

    def append(writer: module.ImageWriter, *_: object) -> None:
        writer._file.write(b"half")
        raise error

    def write_text(path: Path, *arguments: object, **options: object) -> None:
        path.write_bytes(b"{")
        raise error

    with monkeypatch.context() as patch:
        if step == "image.npy":
            patch.setattr(module.ImageWriter, "append", append)
        else:
            patch.setattr(Path, "write_text", write_text)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OutputError) as caught:
            cache.prepare(dataset.cases)
    if error is not KeyboardInterrupt:
        assert str(cache.folder) in str(caught.value)
        assert "No space left" in str(caught.value)
    assert list(cache.folder.iterdir()) == []
    with pytest.raises(DataError, match="prepare it first"):
        cache.load(dataset.cases[0])
    cache.prepare(dataset.cases)
    assert built == ["a", *NAMES]


def test_what_a_killed_process_left_is_ignored_and_swept_when_old(cache, dataset, built):
    for name, age in ((".unfinished-young", 60), (".unfinished-old", 2 * 24 * 3600)):
        (cache.folder / name / "case").mkdir(parents=True)
        stamp = time.time() - age
        os.utime(cache.folder / name, (stamp, stamp))
    (cache.folder / "a").mkdir()  # no case.json: as good as absent
    cache.prepare(dataset.cases)
    assert built == list(NAMES)
    assert leftovers(cache) == [".unfinished-young"]


def read_all(case: CachedCase) -> None:
    for name in ("image", "labels", "coordinates"):
        getattr(case, name)


@pytest.mark.parametrize("name", ["image.npy", "labels.npy", "coordinates.npz", "case.json"])
def test_damaged_entries_are_named_and_rebuilt(cache, dataset, built, name):
    case = dataset.cases[0]
    cache.prepare([case])
    path = cache.folder / "a" / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError) as caught:
        read_all(cache.load(case))
    assert str(caught.value).startswith(f"{cache.folder / 'a'}: damaged cache entry")
    assert "\n" not in str(caught.value)
    cache.prepare([case])
    assert built == ["a", "a"]
    read_all(cache.load(case))


def test_instances_are_kept_apart_from_caches_without_them(tmp_path, cache, dataset, built):
    cache.prepare(dataset.cases[:1])
    counted = CaseCache(tmp_path / "cache", dataset, how(), "components")
    for each in (counted, cache, counted):
        each.prepare(dataset.cases[:1])
    assert built == ["a", "a"]
    labels, instances = counted.load(dataset.cases[0]).labels, counted.load(dataset.cases[0]).instances
    np.testing.assert_array_equal(instances, np.where(labels == 3, 0, labels))  # one part each; 'ignore' has none
    assert instances.dtype == np.uint8
    with pytest.raises(DataError, match="prepare it first"):
        _ = cache.load(dataset.cases[0]).instances


def test_a_map_of_instances_is_read_resampled_and_watched(tmp_path, dataset, built):
    mapped = CaseCache(tmp_path / "cache", dataset, how((3.0, 2.0, 2.0)), "map")
    case = dataset.cases[0]
    with pytest.raises(DataError, match=r"instancesTr.a\.nii\.gz: no such file"):
        mapped.prepare([case])
    image = nib.load(case.label)
    values = np.asarray(image.dataobj)
    numbers = np.where(values == 3, 0, values * 7).astype(np.int16)
    numbers[:4][numbers[:4] > 0] = 300
    path = dataset.root / "instancesTr" / "a.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(numbers, image.affine), path)
    mapped.prepare([case])
    cached = mapped.load(case)
    assert (cached.instances.dtype, cached.instances.shape) == (np.int16, cached.labels.shape)
    pairs = {(int(a), int(b)) for a, b in zip(cached.labels.ravel(), cached.instances.ravel(), strict=True)}
    assert pairs == {(0, 0), (1, 7), (1, 300), (2, 14), (3, 0)}
    numbers[numbers == 300] = 301
    nib.save(nib.Nifti1Image(numbers, image.affine), path)
    os.utime(path, ns=(0, 0))
    mapped.prepare([case])
    assert built == ["a", "a"]
    assert 301 in mapped.load(case).instances


def test_what_a_case_lists_as_annotated_is_checked_again_when_it_changes(cache, dataset):
    cache.prepare(dataset.cases)
    (dataset.root / "annotated.json").write_text(json.dumps({"a": [1, 2], "b": [1, 2], "c": [2]}))
    changed = CaseCache(cache.folder.parent, open_dataset(dataset.root), how())
    assert changed.folder == cache.folder
    with pytest.raises(DataError, match=r"labelsTr.c\.nii\.gz: voxels of 'x' \(1\), which .* for case 'c'"):
        changed.prepare(changed.dataset.cases)


def test_refusals_in_one_line(tmp_path, cache, dataset):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cache cannot be written") as caught:
            CaseCache(folder, dataset, how()).prepare(dataset.cases)
        assert "\n" not in str(caught.value)
    case = dataset.cases[0]
    with pytest.raises(DataError, match="has no label map"):
        cache.prepare([Case("a", case.images, None)])
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"gone\.nii\.gz: no such file"):
            cache.prepare([Case("a", (tmp_path / "gone.nii.gz",), case.label)], workers)


def test_labels_above_255_are_kept(cache, dataset):
    labels = Labels({"background": 0, **{f"l{i}": i for i in range(1, 301)}})
    many = RawDataset(dataset.root, "x", dataset.channels, labels, dataset.cases)
    case = dataset.cases[0]
    image = nib.load(case.label)
    values = np.asarray(image.dataobj).astype(np.int16)
    values[:4] = 300
    nib.save(nib.Nifti1Image(values, image.affine), case.label)
    cache = CaseCache(cache.folder.parent, many, how())
    cache.prepare([case])
    cached = cache.load(case)
    assert cached.labels.dtype == np.int16
    assert cached.labels.max() == 300
    assert 300 in cached.coordinates


def test_label_maps_of_one_name_and_another_place_are_told_apart(tmp_path, dataset, built):
    """Same name, size and time of change: only the folder says that it is another file."""
    case = dataset.cases[0]
    CaseCache(tmp_path / "cache", dataset, how()).prepare([case])
    assert case.label is not None
    other = dataset.root / "elsewhere" / case.label.name
    other.parent.mkdir()
    shutil.copy2(case.label, other)
    listed = {"a": {"images": [str(path) for path in case.images], "label": "elsewhere/a.nii.gz"}}
    description = json.loads((dataset.root / "dataset.json").read_text())
    (dataset.root / "dataset.json").write_text(json.dumps(description | {"dataset": listed}))
    changed = open_dataset(dataset.root)
    for _ in range(2):
        CaseCache(tmp_path / "cache", changed, how()).prepare(changed.cases)
    assert built == ["a", "a"]
    assert changed.cases[0].label == other


def test_objects_of_one_case_and_the_label_map_of_another_need_two_names(tmp_path, dataset):
    for path in (*dataset.root.glob("imagesTr/b_*"), dataset.root / "labelsTr" / "b.nii.gz"):
        path.rename(path.with_name(path.name.replace("b", "a_instances", 1)))
    cases = (clash := open_dataset(dataset.root)).cases
    with pytest.raises(DataError, match="cases 'a' and 'a_instances': the objects of the first"):
        CaseCache(tmp_path / "cache", clash, how(), "components").prepare(cases)
    CaseCache(tmp_path / "cache", clash, how()).prepare(cases)  # without objects there is no clash


@pytest.mark.parametrize("spacing", [(0.01, 1, 1), (40, 1, 1)])
def test_sizes_that_cannot_be_meant_are_refused_with_the_file(tmp_path, dataset, spacing):
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz: 12 x 13 x 14|a_0000\.nii\.gz: 14 x 13 x 12") as caught:
        CaseCache(tmp_path / "cache", dataset, how(spacing)).prepare(dataset.cases[:1])
    assert "correct the voxel size in the file, or choose another spacing" in str(caught.value)


def test_no_memory_is_one_line_with_the_case(tmp_path, dataset, monkeypatch):
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(module, "crop_and_normalize", exhausted)
    with pytest.raises(MemoryShortageError, match=r"a_0000\.nii\.gz: this case needs more memory"):
        CaseCache(tmp_path / "cache", dataset, how()).prepare(dataset.cases[:1])


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"codings": {"a": 1}}', "[" * 100_000, '{"codings": ["x"]}'])
def test_records_of_any_content_are_one_line(cache, dataset, content):
    cache.prepare(dataset.cases[:1])
    (cache.folder / "a" / "case.json").write_text(content)
    with pytest.raises(DataError, match="damaged cache entry"):
        cache.load(dataset.cases[0])
    cache.prepare(dataset.cases[:1])
    assert cache.load(dataset.cases[0]).shape[0] == 2


def test_all_bad_cases_are_told_and_the_good_stay(cache, dataset, built):
    for case in dataset.cases[:2]:
        case.images[0].write_bytes(case.images[0].read_bytes()[:40])
    for workers in (0, 2):
        with pytest.raises(DataError) as caught:
            cache.prepare(dataset.cases, workers)
        assert all(f"{case.images[0]}: not a" in str(caught.value) for case in dataset.cases[:2])
        assert str(caught.value).endswith(f" (2 of {len(NAMES)} cases; the others are prepared in {cache.folder})")
        assert {path.name for path in cache.folder.iterdir()} == set(NAMES) - {"a", "b"}
    assert built.count("c") == 1


@pytest.mark.parametrize(
    "damage",
    [{"codings": [True]}, {"codings": ["1"]}, {"codings": []}, {"codings": [{"step": 1.0}] * 2}, {"shape": [1]},
     {"codings": [{"step": 1.0, "zero": "x", "base": 0.0}] * 2}, {"codings": [{"step": 1, "zero": 1, "base": 1}]},
     {"shape": "x"}, {"shape": [1, 10**30, 1, 1]}, {"codings": {"0": 1}}, {"codings": None}],
    ids=str,
)  # fmt: skip
def test_a_record_of_other_content_is_a_damaged_entry(cache, dataset, damage):
    case = dataset.cases[0]
    cache.prepare([case])
    path = cache.folder / "a" / "case.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | damage))
    with pytest.raises(DataError, match="damaged cache entry"):
        read_all(cache.load(case))
    del whole[next(iter(damage))]
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match="damaged cache entry"):
        cache.load(case)


@pytest.mark.parametrize(
    ("name", "array"),
    [("image", np.zeros((1, 2, 2, 2), np.float32)), ("image", np.zeros(3)), ("labels", np.zeros((2, 2, 2), np.uint8)),
     ("labels", np.array("x"))],
)  # fmt: skip
def test_an_array_of_another_case_is_a_damaged_entry(cache, dataset, name, array):
    cache.prepare(dataset.cases[:1])
    np.save(cache.folder / "a" / f"{name}.npy", array)
    with pytest.raises(DataError, match=f"damaged cache entry \\({name} is "):
        getattr(cache.load(dataset.cases[0]), name)


def test_a_pipe_in_the_cache_is_waited_for_by_nobody(cache, dataset, built):
    cache.prepare(dataset.cases[:1])
    for name in ("image.npy", "coordinates.npz", "case.json"):
        path = cache.folder / "a" / name
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(DataError, match="damaged cache entry"):
            read_all(cache.load(dataset.cases[0]))
        cache.prepare(dataset.cases[:1])
    assert built == ["a"] * 4


def test_two_processes_prepare_one_cache(cache, dataset, monkeypatch):
    """The one that comes later leaves the entry of the first, which may be in use by then, as it is."""
    original, other = module.load_case, CaseCache(cache.folder.parent, dataset, how())

    def slow(case: Case, of: RawDataset) -> object:
        monkeypatch.setattr(module, "load_case", original)
        other.prepare([case])
        return original(case, of)

    (cache.folder / "a").mkdir(parents=True)
    monkeypatch.setattr(module, "load_case", slow)
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: moved.append(Path(to).name) or replace(self, to))
    cache.prepare(dataset.cases[:1])
    assert [name for name in moved if name in ("a", "outdated")] == ["outdated", "a"]
    read_all(cache.load(dataset.cases[0]))
    assert leftovers(cache) == []
