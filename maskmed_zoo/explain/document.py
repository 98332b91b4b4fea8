"""What `explain` writes: pictures for the eye, and `explain.json` with the numbers behind them, defined in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maskmed_zoo.explain.definitions import DEFINITIONS
from maskmed_zoo.explain.over_cases import OverCases
from maskmed_zoo.explain.pictures import draw_binding, draw_case
from maskmed_zoo.explain.records import case_record
from maskmed_zoo.explain.view import Explained, lookers
from maskmed_zoo.files import write_text
from maskmed_zoo.runner.display import Display

FILE = "explain.json"


def write_document(out: Path, facts: dict[str, Any], explained: Sequence[Explained], display: Display) -> list[Path]:
    """Write pictures and document to the folder `out`; returns their paths, the document last."""
    over = OverCases(explained, facts["class_names"])
    notes = list(_notes(explained, facts["head"], facts["neck"]))
    for note in notes:
        display.say(note)
    pictures: list[Path] = []
    with display.task("drawing") as progress:
        for index, case in enumerate(explained, start=1):
            pictures += draw_case(out / case.name, case, over)
            progress(index, len(explained))
    if over.answers:
        pictures.append(draw_binding(out, over))
    content = facts | {
        "definitions": DEFINITIONS,
        "notes": notes,
        "binding": over.binding_record(),
        "matching": over.matching_record(),
        "cases": [case_record(case) for case in explained],
        "pictures": [str(path.relative_to(out)) for path in pictures],
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    # Numbers of a row stand side by side.
    text = re.sub(r"\[[\s\d.,eE+-]*\]", lambda found: " ".join(found[0].split()), text)
    write_text(out / FILE, text + "\n")
    return [*pictures, out / FILE]


def _notes(explained: Sequence[Explained], head: str, neck: str) -> Iterator[str]:
    """One line for everything that this network does not have, or does not show, and what would show it."""
    view = explained[0].chosen
    if not view.classes:
        yield f"head '{head}' has no class embeddings: its masks are the labels themselves; no binding"
    if not view.embeddings:
        yield f"head '{head}' names no layers that make its masks; to show mask embeddings, implement Head.mask_layers"
    if not view.attention:
        yield f"head '{head}' shows no cross-attention: that of a layers.query_decoder.QueryDecoder is shown"
    if not view.sampling:
        yield f"neck '{neck}' shows no sampling points: those of a layers.deformable.DeformableBlock are shown"
    for case in explained:
        if case.chosen.attention and not lookers(case.chosen):
            yield f"{case.name}: no query answers for a label predicted in the window, so no attention.png"
