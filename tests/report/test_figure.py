"""The picture: sides, slices, proportions, colours, and what it says without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from maskmed_zoo.errors import DataError, UserError
from maskmed_zoo.report.figure import chosen_slices, comparison_figure, label_colors

pixels = pytest.importorskip("matplotlib.image")

NAMES = ["background", "liver", "spleen"]


def _case() -> tuple[np.ndarray, np.ndarray]:
    """A liver on the patient's right (large x), a spleen on the left, both in the upper half."""
    image = np.zeros((12, 10, 16), np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[8:11, 3:8, 10:14] = 1
    labels[8:11, 3:5, 2:5] = 2
    return image, labels


def _place(picture: np.ndarray, colour: str, columns: slice) -> np.ndarray:
    """Mean (row, column) of the pixels near an opaque label colour within the given columns."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    near = np.abs(picture[:, columns, :3] - 0.85 * wanted).max(2) < 0.06
    assert near.sum() > 20
    return np.argwhere(near).mean(0)


def test_the_right_is_left_and_the_head_is_up(tmp_path: Path) -> None:
    image, labels = _case()
    path = comparison_figure(tmp_path / "new" / "a.png", [("case", image, labels, labels)], NAMES, (4, 3, 3), (0, 1))
    picture = pixels.imread(path)
    height, width = picture.shape[:2]
    colours = label_colors(3)
    middle = slice(width // 3 + 20, 2 * width // 3)  # the reference's column
    liver, spleen = (_place(picture[: int(0.8 * height)], colour, middle) for colour in colours[1:])
    assert liver[1] < spleen[1]
    coronal = picture[height // 2 - 20 : int(0.85 * height)]
    panel = np.argwhere((coronal[:, middle, :3].max(2) < 0.05).mean(1) > 0.3).ravel()
    assert _place(coronal, colours[1], middle)[0] < panel.mean()


def test_image_and_labels_lie_on_one_another(tmp_path: Path) -> None:
    image, labels = _case()
    image[labels == 1] = 1
    path = comparison_figure(tmp_path / "a.png", [("case", image, labels, labels)], NAMES, (4, 3, 3), (0, 2))
    picture = pixels.imread(path)[..., :3]
    third = round(3.08 * 150)  # a panel and the gap beside it
    left, top = round(0.35 * 150), round(0.43 * 150)
    axial = round(3.0 * 150 * 30 / 48)  # 10 rows of 3 mm in a panel of 16 columns of 3 mm
    for rows in (slice(top, top + axial), slice(top + axial + 12, top + axial + 12 + 450)):  # axial, coronal
        panel = picture[rows, left : left + third - 30]
        grey = np.argwhere(np.abs(panel - 0.5).max(2) < 0.1).mean(0)
        liver = _place(picture[rows], label_colors(2)[1], slice(left + third, left + 2 * third - 30))
        np.testing.assert_allclose(grey, liver, atol=6)


def _panel_heights(path: Path) -> list[int]:
    """Heights in pixels of the panels, along a column of black pixels inside them."""
    picture = pixels.imread(path)
    dark = picture[:, int(0.25 * picture.shape[1]), :3].max(1) < 0.05
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dark, [0]]).astype(int)))
    return [int(b - a) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 20]


def test_millimetres_keep_their_proportion(tmp_path: Path) -> None:
    image, labels = _case()
    path = comparison_figure(tmp_path / "a.png", [("case", image, labels, labels)], NAMES, (6, 2, 4), (0, 1))
    axial, coronal = _panel_heights(path)
    per_mm = 3.0 * 150 / (16 * 4)  # a panel is 3 inches wide at 150 dpi
    assert axial == pytest.approx(10 * 2 * per_mm, abs=4)
    assert coronal == pytest.approx(12 * 6 * per_mm, abs=4)


def test_without_reference_there_are_two_columns(tmp_path: Path) -> None:
    image, labels = _case()
    without = pixels.imread(comparison_figure(tmp_path / "b.png", [("c", image, None, labels)], NAMES, (1, 1, 1)))
    mixed = [("c", image, None, labels), ("d", image, labels, labels)]
    both = pixels.imread(comparison_figure(tmp_path / "c.png", mixed, NAMES, (1, 1, 1)))
    assert both.shape[1] - without.shape[1] == pytest.approx(3.08 * 150, abs=2)
    assert both.shape[0] > 1.6 * without.shape[0]


def test_background_may_be_named_or_not_and_the_window_matters(tmp_path: Path) -> None:
    image, labels = _case()
    image += np.linspace(0, 100, 16, dtype=np.float32)
    rows = [("c", image, labels, labels)]
    first, same, other = (
        comparison_figure(tmp_path / f"{index}.png", rows, names, (1, 1, 1), window).read_bytes()
        for index, (names, window) in enumerate([(NAMES, (0, 100)), (NAMES[1:], (0, 100)), (NAMES, (0, 300))])
    )
    assert first == same
    assert first != other


def test_chosen_slices() -> None:
    labels = np.zeros((6, 5, 4), int)
    labels[4, 3] = 1
    labels[1, 1, 0], labels[1, 1, 1] = 1, 2
    assert chosen_slices(labels) == (4, 1)
    labels[2, 3, 0] = 2
    assert chosen_slices(labels) == (4, 3)
    assert chosen_slices(np.zeros((6, 5, 4), int)) == (3, 2)


def test_colours_are_distinct() -> None:
    colours = label_colors(60)
    assert len(colours) == len(set(colours)) == 60
    assert colours[:5] == label_colors(5)
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours[:17]])
    distances = np.linalg.norm(rgb[:, None] - rgb[None], axis=2)
    assert distances[~np.eye(17, dtype=bool)].min() > 30


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = _case()
    with pytest.raises(DataError, match="no case"):
        comparison_figure(tmp_path / "a.png", [], NAMES, (1, 1, 1))
    with pytest.raises(DataError, match="case 'c'"):
        comparison_figure(tmp_path / "a.png", [("c", image, labels[1:], labels)], NAMES, (1, 1, 1))
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"maskmed-zoo\[report\]"):
        comparison_figure(tmp_path / "a.png", [("c", image, labels, labels)], NAMES, (1, 1, 1))
    assert not (tmp_path / "a.png").exists()


def test_names_are_those_of_the_values(tmp_path: Path) -> None:
    """A list or a tuple, with background or without: the same picture, and the legend names each label as it is."""
    image, labels = _case()
    pictures = {
        comparison_figure(tmp_path / f"{index}.png", [("c", image, labels, labels)], names, (1, 1, 1)).read_bytes()
        for index, names in enumerate([NAMES, tuple(NAMES), NAMES[1:], tuple(NAMES[1:])])
    }
    assert NAMES[0] == "background"
    assert len(pictures) == 1
