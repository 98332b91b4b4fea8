"""The picture of reliability: the diagonal, one curve per name, and names of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskmed_zoo.evaluation.calibration import Reliability
from maskmed_zoo.report import reliability
from maskmed_zoo.report.figure import label_colors
from maskmed_zoo.report.reliability import reliability_figure

pixels = pytest.importorskip("matplotlib.image")


def curve(power: float) -> dict[str, object]:
    """Of probabilities that are kept only at 1."""
    rng = np.random.default_rng(0)
    p = rng.random(50_000)
    return Reliability.of(p, rng.random(p.size) < p**power, 10).to_dict()


def test_too_sure_lies_below_the_diagonal(tmp_path: Path) -> None:
    path = reliability_figure(tmp_path / "a.png", {"kept": curve(1), "too sure": curve(2), "too shy": curve(0.5)})
    picture = pixels.imread(path)
    left, top, side = (round(inch * 150) for inch in (reliability.LEFT, reliability.TOP, reliability.WIDE))
    plot = picture[top : top + side, left : left + side, :3]
    middle = slice(side // 2 - 6, side // 2 + 6)
    heights = []
    for color in label_colors(3):
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        places = np.argwhere(np.abs(plot[:, middle] - wanted).max(2) < 0.1)
        heights.append(1 - places[:, 0].mean() / side)
    assert heights == pytest.approx([0.5, 0.25, 0.5**0.5], abs=0.04)


def test_empty_bins_have_no_share(tmp_path: Path) -> None:
    bins = [{"from": 0.0, "to": 0.25}, {"from": 0.25, "to": 0.5}, {"from": 0.75, "to": 1.0}]
    places, heights = reliability._steps(bins, [0.5, 0.3, 0.2])
    assert places == [0.0, 0.25, 0.25, 0.5, 0.75, 0.75, 1.0]
    np.testing.assert_array_equal(heights, [0.5, 0.5, 0.3, 0.3, np.nan, 0.2, 0.2])
    nothing = Reliability.none(4).to_dict()
    assert reliability_figure(tmp_path / "a.png", {"one": curve(1), "without a voxel": nothing}).is_file()


def test_many_and_hostile_names(tmp_path: Path) -> None:
    names = ["\x1b[0m\n$\\frac$" + "x" * 200, *(f"label_{number}" for number in range(60))]
    one = curve(1)
    path = reliability_figure(tmp_path / "new" / "a.png", dict.fromkeys(names, one))
    few = reliability_figure(tmp_path / "b.png", dict.fromkeys(names[:3], one))
    assert pixels.imread(path).shape == pixels.imread(few).shape
