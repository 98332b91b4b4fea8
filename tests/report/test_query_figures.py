"""Pictures of queries: what is drawn where, in which colour, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmed_zoo.errors import UserError
from maskmed_zoo.report import canvas
from maskmed_zoo.report.figure import label_colors
from maskmed_zoo.report.query_matrices import (
    Bindings,
    Panel,
    Served,
    ServingQuery,
    binding_figure,
    class_embedding_figure,
    cosine_similarity,
    mask_embedding_figure,
    similar_neighbors,
)
from maskmed_zoo.report.query_slices import Block, Looker, Sampled, Scene, attention_figure, sampling_figure

pixels = pytest.importorskip("matplotlib.image")

CLASSES = ["background", "liver", "spleen"]
PATCH = (8, 12, 16)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def places(path: Path, colour: np.ndarray, tolerance: float = 0.02) -> np.ndarray:
    """(m 2) rows and columns of the pixels of a colour."""
    return np.argwhere(np.abs(pixels.imread(path)[..., :3] - colour).max(2) < tolerance)


def test_binding_is_coloured_by_class(tmp_path: Path) -> None:
    bindings = Bindings([[0, 0], [1, 1], [2, None]], [1.0, 1.0, 1.0], [2, 2, 1], 1.0)
    names: Any = {"rows": ["q1", "q2", "q0"], "cases": ["a", "b"], "classes": CLASSES}
    path = binding_figure(tmp_path / "new" / "b.png", "title", bindings, **names)
    colours = label_colors(3)
    liver, spleen = (places(path, rgb(colour)) for colour in colours[1:])
    left = pixels.imread(path).shape[1] // 2  # the legend is on the right
    liver, spleen = liver[liver[:, 1] < left], spleen[spleen[:, 1] < left]
    assert len(liver) == pytest.approx(2 * len(spleen), rel=0.1), "spleen is bound in one of two cases"
    assert liver[:, 0].max() < spleen[:, 0].min()
    served = Served([1, 2], [2, 0], [[ServingQuery(2, 0.9), ServingQuery(2, 0.8)], [ServingQuery(0, 0.5), None]], 1.0)
    both = binding_figure(tmp_path / "c.png", "title", bindings, served, **names)
    assert pixels.imread(both).shape[1] > 1.3 * pixels.imread(path).shape[1]


def test_probabilities_have_one_scale_and_embeddings_are_about_zero(tmp_path: Path) -> None:
    low, high = np.full((2, 4), 0.1), np.zeros((2, 4))
    high[0, 1] = 1.0
    rows, columns = ["q0", "q1"], [*CLASSES, "no object"]
    path = class_embedding_figure(
        tmp_path / "a.png", "t", [Panel("1", low), Panel("2", high)], rows, columns, probabilities=True
    )
    import matplotlib

    bright, dark = (np.array(matplotlib.colormaps["viridis"](value)[:3]) for value in (1.0, 0.1))
    width = pixels.imread(path).shape[1]
    cell = places(path, bright)
    cell = cell[cell[:, 1] < 0.8 * width]  # left of the colour bar
    assert 0.4 * width < cell[:, 1].mean()
    assert places(path, dark)[:, 1].min() < 0.3 * width
    path = class_embedding_figure(
        tmp_path / "b.png", "t", [Panel("1", -high), Panel("2", high)], rows, columns, probabilities=False
    )
    red, blue = (np.array(matplotlib.colormaps["RdBu_r"](value)[:3]) for value in (1.0, 0.0))
    red, blue = (found[found[:, 1] < 0.75 * width, 1].mean() for found in (places(path, red), places(path, blue)))
    assert blue < red


def test_similar_channels_become_neighbours_and_cosines_are_cosines(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    two = rng.normal(size=(5, 2))
    values = np.stack([two[:, i % 2] + 0.01 * rng.normal(size=5) for i in range(10)], 1)
    order = similar_neighbors(values)
    assert sorted(order.tolist()) == list(range(10))
    assert len({i % 2 for i in order[:5]}) == 1
    assert similar_neighbors(values[:, :1]).tolist() == [0]
    cosines = cosine_similarity(np.concatenate([values, np.zeros((1, 10))]))
    np.testing.assert_allclose(cosines[:5, :5].diagonal(), 1)
    a, b = values[:2]
    assert cosines[0, 1] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert not cosines[5].any()
    path = mask_embedding_figure(
        tmp_path / "m.png", "t", [Panel("1", values), Panel("2", values[:, :1])], list("abcde")
    )
    assert pixels.imread(path).std() > 0.1


def scene() -> Scene:
    labels = np.zeros(PATCH, np.uint8)
    labels[2:6, 7:11, 2:6] = 1
    return Scene(np.zeros(PATCH, np.float32), labels, (4.0, 2.0, 3.0), CLASSES)


def warm(path: Path) -> np.ndarray:
    """Pixels of the strongest attention in the one column of panels."""
    found = places(path, np.array([0.9, 0.9, 0.58]), 0.08)
    return found[(found[:, 1] > 1.55 * canvas.DPI) & (found[:, 1] < 3.65 * canvas.DPI)]


def test_attention_lies_where_its_token_is(tmp_path: Path) -> None:
    """The token of the patient's right and front is on the upper left."""
    weights = np.full((2, 2, 2, 2), 0.01)
    weights[1, 0, 1, 1] = 1  # low z, high y (front), high x (right)
    looker = Looker(1, 1, (3, 9, 4))
    path = attention_figure(tmp_path / "a.png", "t", scene(), [looker], [Block("block 1", weights, None)])
    hot = warm(path)
    panel = 2.1 * 24 / 48  # 12 x 2 mm by 16 x 3 mm
    top = 0.95 + panel + 0.08
    row, column = hot.mean(0) / canvas.DPI
    assert row == pytest.approx(top + panel / 4, abs=0.08)
    assert column == pytest.approx(1.55 + 2.1 / 4, abs=0.08)
    upper = attention_figure(
        tmp_path / "b.png", "t", scene(), [Looker(1, 1, (5, 9, 4))], [Block("block 1", weights, None)]
    )
    assert len(warm(upper)) == 0 < len(hot), "the token above this slice's is not lit"


def test_priors_and_label_are_outlined(tmp_path: Path) -> None:
    weights, prior = np.full((2, 2, 2, 2), 1 / 8), np.ones((2, 2, 2, 2))
    prior[0, :, 0] = 0
    cyan, counts = np.array([0.0, 1.0, 1.0]), []
    for given in (None, prior, np.ones_like(prior)):
        path = attention_figure(
            tmp_path / "a.png", "t", scene(), [Looker(0, 1, (3, 9, 4))], [Block("block", weights, given)]
        )
        counts.append(len(places(path, cyan, 0.05)))
        assert len(places(path, rgb(label_colors(2)[1]), 0.05)) > 100
    assert counts[0] == counts[2] == 0 < counts[1]


def test_points_lie_where_they_are(tmp_path: Path) -> None:
    """Axial: the right is left and the front up; coronal: the head is up; sagittal: the front is left."""
    centre = np.array([16.0, 12.0, 24.0])
    points = centre + np.array([[8.0, 6.0, 3.0], [0.0, 0.0, 0.0]])
    one = Sampled("liver", (4, 6, 8), centre, points, np.array([0.9, 0.1]), np.array([1, 0]))
    path = sampling_figure(tmp_path / "s.png", "t", scene(), [one], (0, 1))
    import matplotlib

    shade = np.array(matplotlib.colormaps["turbo"](0.92)[:3])
    reach = 4 * 4.0
    for panel, (up, left) in enumerate([(6, 3), (8, 3), (8, 6)]):
        start = 1.55 + panel * 2.18
        found = places(path, 0.8 * shade, 0.06) / canvas.DPI  # on black, a fifth transparent
        found = found[(found[:, 1] > start) & (found[:, 1] < start + 2.1)]
        row, column = found.mean(0)
        assert row == pytest.approx(0.85 + 1.05 * (1 - up / reach), abs=0.05)
        assert column == pytest.approx(start + 1.05 * (1 - left / reach), abs=0.05)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"maskmed-zoo\[report\]"):
        canvas.Sheet(1, 1)
