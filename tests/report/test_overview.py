"""The picture of the worst, median and best case: slice, part, sides, colours, outlines and hostile names."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from maskmed_zoo.errors import DataError
from maskmed_zoo.report import overview
from maskmed_zoo.report.figure import label_colors
from maskmed_zoo.report.overview import ShownCase, overview_figure

pixels = pytest.importorskip("matplotlib.image")

LABELS = {"background": 0, "liver": 1, "spleen": 2, "ignore": 5}


def case(
    shape: tuple[int, int, int] = (12, 30, 40), spacing=(3.0, 1.0, 1.0), *, image: bool = True, **more
) -> ShownCase:
    """A liver on the patient's right (large x) and a spleen on the left; of the latter a part is not predicted."""
    reference = np.zeros(shape, np.int16)
    reference[4:8, 8:20, 26:34] = 1
    reference[4:8, 10:16, 6:12] = 2
    prediction = reference.copy()
    prediction[5, 10:16, 6:9] = 0
    prediction[6, 10:13, 6:8] = 0
    volume = np.linspace(0, 100, reference.size, dtype=np.float32).reshape(shape) if image else None
    values = {"reference": reference, "prediction": prediction, "image": volume, "spacing": spacing, **more}
    return ShownCase("worst", ("case_00", "mean Dice 0.5000"), **values)


def test_the_slice_with_most_differences_then_with_most_labels() -> None:
    shown = case()
    view = overview._View.of(shown)
    assert (view.plane.name, view.index, view.differing) == ("axial", 5, 18)
    shown.reference[9, :20, :30] = 1
    same = case(reference=shown.reference, prediction=shown.reference)
    assert (overview._View.of(same).index, overview._View.of(same).differing) == (9, 0)
    empty = case(reference=np.zeros((12, 30, 40), int), prediction=np.zeros((12, 30, 40), int))
    assert overview._View.of(empty).index == 6
    assert overview._View.of(empty).part == (slice(0, 30), slice(0, 40))


def test_what_is_ignored_does_not_differ() -> None:
    shown = case(ignore=5)
    shown.reference[5, 10:16, 6:9] = 5
    assert overview._View.of(shown).index == 6


def test_labels_that_nobody_annotated_do_not_differ() -> None:
    shown = case(unannotated=[2])
    assert not shown.differs.any()
    shown.prediction[4, 8:20, 26:34] = 2  # where the reference has a liver
    shown.prediction[7, 8, 26] = 0
    assert np.argwhere(shown.differs).tolist() == [[7, 8, 26]]


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [
        ((1, 1, 1), "axial"),
        ((5, 1, 1), "axial"),
        ((1, 3, 1), "coronal"),
        ((1, 1.5, 4), "sagittal"),
        ((1, 4, 3), "axial"),
    ],
)
def test_slices_are_cut_across_the_longest_voxels(spacing, plane: str) -> None:
    assert overview._plane(spacing).name == plane


def test_the_part_shown_is_square_in_millimetres() -> None:
    mask = np.zeros((200, 100), bool)
    mask[60:100, 70:80] = True
    rows, columns = overview._part(mask, (0.5, 2.0))
    assert (rows.stop - rows.start) * 0.5 == pytest.approx((columns.stop - columns.start) * 2, abs=2)
    assert rows.start < 60
    assert rows.stop > 100
    assert (columns.start, columns.stop) == (66, 84)
    mask[:] = True
    assert overview._part(mask, (0.5, 2.0)) == (slice(0, 200), slice(0, 100))


def _near(picture: np.ndarray, color: str, share: float = 0.85) -> np.ndarray:
    """Places of pixels of a label's opaque border on black."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.argwhere(np.abs(picture[..., :3] - share * wanted).max(2) < 0.04)


def test_the_right_is_left_and_what_was_missed_is_outlined(tmp_path: Path) -> None:
    path = overview_figure(tmp_path / "new" / "a.png", "title", [case(image=False)], LABELS)
    picture = pixels.imread(path)
    liver, spleen = (_near(picture, color) for color in label_colors(3)[1:])
    left = round((overview.SIDE + overview.PANEL + overview.GAP / 2) * 150)
    for panel in (slice(0, left), slice(left, None)):
        inside = [
            places[(places[:, 1] >= (panel.start or 0)) & (places[:, 1] < (panel.stop or 10**6))]
            for places in (liver, spleen)
        ]
        assert min(map(len, inside)) > 50
        assert inside[0].mean(0)[1] < inside[1].mean(0)[1]
    white = np.argwhere(picture[..., :3].min(2) > 0.9)
    reference, prediction = (
        _near(picture[:, panel], label_colors(3)[2]) for panel in (slice(0, left), slice(left, None))
    )
    assert np.ptp(reference[:, 1]) > 1.5 * np.ptp(prediction[:, 1])  # half of the spleen was missed
    top, panel = round(overview.TOP * 150), round(overview.PANEL * 150)
    inside = white[(white[:, 1] > left + 20) & (white[:, 1] < left + panel - 20)]
    inside = inside[(inside[:, 0] > top + 60) & (inside[:, 0] < top + panel // 2)]
    assert np.ptp(inside[:, 1]) > np.ptp(np.concatenate([liver, spleen])[:, 1]) / 3


def test_without_images_there_are_two_columns(tmp_path: Path) -> None:
    widths = [
        pixels.imread(overview_figure(tmp_path / f"{image}.png", "t", [case(image=image)], LABELS)).shape[1]
        for image in (True, False)
    ]
    assert widths[0] - widths[1] == pytest.approx((overview.PANEL + overview.GAP) * 150, abs=2)


def test_names_are_escaped_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = list[str]()
    monkeypatch.setattr(overview.Sheet, "text", lambda self, left, top, text, **style: texts.append(text))
    monkeypatch.setattr(overview.Sheet, "legend", lambda self, left, top, entries, columns: texts.extend(dict(entries)))
    name = "a\x1b[31m\nb$x_{$" + "c" * 300
    shown = case()
    hostile = ShownCase("worst", (name,), None, shown.reference, shown.prediction, shown.spacing)
    path = overview_figure(tmp_path / "a.png", "t", [hostile], {"background": 0, name: 1, "b": 2})
    assert path.stat().st_size > 1000
    assert sum("a\\x1b[31m\\nb$x_{$ccc" in text for text in texts) == 2
    assert max(len(line) for text in texts for line in text.split("\n") if "ccc" in line) == overview.LONGEST_LINE


def test_one_case_is_held_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref] = []

    def cases() -> Iterator[ShownCase]:
        for _ in range(3):
            shown = case()
            assert not any(array() is not None for array in alive)
            alive.extend(weakref.ref(array) for array in (shown.reference, shown.image))
            yield shown
            del shown

    overview_figure(tmp_path / "a.png", "t", cases(), LABELS)
    assert len(alive) == 6


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no case"):
        overview_figure(tmp_path / "a.png", "t", [], LABELS)
    with pytest.raises(DataError, match=r"case case_00, .* one shape"):
        overview_figure(tmp_path / "a.png", "t", [case(prediction=np.zeros((2, 2, 2), int))], LABELS)
    assert not list(tmp_path.iterdir())
