"""The picture of a run's curves: every line that is told from the others has a name, and all are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from maskmed_zoo.report import canvas
from maskmed_zoo.report.progress import MOST, Curves, progress_figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    seen: list[Any] = []
    save = canvas.save
    monkeypatch.setattr(canvas, "save", lambda figure, path: (seen.append(figure), save(figure, path))[1])
    return seen


def line(*values: float) -> list[tuple[int, float]]:
    return [*enumerate(values, start=1)]


def curves(labels: int) -> Curves:
    return Curves(
        losses={"loss": line(3, 2, 1), "ce": line(0.3, 0.2, 0.001), "dropped": line(0, 0, 0)},
        dice={"mean": line(0.1, 0.5, 0.6), "mean, smoothed": line(0.1, 0.2, 0.3)},
        labels={f"label {i}": line(0.1, 0.2, 1 - i / 100) for i in range(labels)},
        rates={"cnn": line(1e-3, 1e-4, 0)},
        norms={"before clipping": line(5, 6, 7)},
    )


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_few_labels(tmp_path: Path, figures: list[Any]) -> None:
    progress_figure(tmp_path / "progress.png", "a run: $x$", curves(3))
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    dice = figure.axes[1]
    assert [len(axes.lines) for axes in figure.axes] == [3, 5, 1, 1]
    assert dice.lines[2].get_xydata().tolist() == [[1, 0.1], [2, 0.2], [3, 1.0]]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "log", "log"]
    names = ["mean 0.6", "mean, smoothed 0.3", "label 0 1", "label 1 0.99", "label 2 0.98"]
    assert texts(figure) == ["loss 1", "ce 0.001", "dropped 0", *names, "cnn 0", "before clipping 7"]
    thick = max(dice.lines, key=lambda drawn: drawn.get_linewidth())
    assert thick.get_ydata().tolist() == [0.1, 0.5, 0.6]
    assert thick.get_zorder() == max(drawn.get_zorder() for drawn in dice.lines), "the mean lies on top"


def test_of_many_labels_the_lowest_have_a_name(tmp_path: Path, figures: list[Any]) -> None:
    progress_figure(tmp_path / "progress.png", "a run", curves(60))
    (figure,) = figures
    assert len(figure.axes[1].lines) == 62
    named = [text for text in texts(figure) if text.startswith("label")]
    assert named == [f"label {i} {1 - i / 100:.3g}" for i in range(59, 59 - MOST, -1)]
    assert f"{60 - MOST} higher ones have no name" in [text.get_text() for text in figure.texts]


def test_a_run_without_validation_or_a_single_step(tmp_path: Path, figures: list[Any]) -> None:
    progress_figure(tmp_path / "progress.png", "", Curves(losses={}, dice={}, labels={}, rates={}, norms={}))
    assert [len(axes.lines) for axes in figures[0].axes] == [0, 0, 0, 0]
