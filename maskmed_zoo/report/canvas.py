"""A sheet to draw on, measured in inches from its upper left corner; matplotlib is imported when it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskmed_zoo.errors import UserError, escaped
from maskmed_zoo.files import make_folder, write_atomically

DPI = 150


def require_matplotlib() -> None:
    """Raise `UserError` without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise UserError('pictures need matplotlib: pip install "maskmed-zoo[report]"') from error


class Sheet:
    """A white figure of `width` x `height` inches; raises `UserError` without matplotlib."""

    def __init__(self, width: float, height: float) -> None:
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes in a box."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose upper left corner is at a place."""
        where: dict[str, Any] = {"ha": "left", "va": "top", "fontsize": 8} | style
        self.figure.text(left / self.width, 1 - top / self.height, text, **where)

    def legend(self, left: float, top: float, entries: list[tuple[str, str]], columns: int = 1) -> None:
        """Coloured squares with text beside them; `entries` are (text, color)."""
        anchor = (left / self.width, 1 - top / self.height)
        add_legend(self.figure, entries, loc="upper left", bbox_to_anchor=anchor, ncols=columns)

    def save(self, path: Path) -> Path:
        """Write a PNG, and its folder where that is missing."""
        return save(self.figure, path)


def add_legend(figure: Any, entries: list[tuple[str, str]], **place: Any) -> None:
    """Coloured squares with text beside them; `entries` are (text, color)."""
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=color, edgecolor="0.3", linewidth=0.5, label="label") for _, color in entries]
    style: dict[str, Any] = {"fontsize": 8, "frameon": False, "borderaxespad": 0, "handlelength": 1.2}
    legend = figure.legend(handles=patches, **style, **place)
    for shown, (text, _) in zip(legend.get_texts(), entries, strict=True):
        shown.set_text(text)  # given as a label, one that begins with _ would be left out


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, and its folder where that is missing; raises `OutputError`.

    Names stand in it as they are: $ begins no formula, and control characters are escapes.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("\n".join(map(escaped, text.get_text().split("\n"))))
    make_folder(path.parent)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))
    return path
