"""What `explain` writes: pictures for the eye, and `explain.json` with the numbers behind them, defined in words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskmed_zoo.explain.case import View, attention_record, lookers, samples, sampling_record
from maskmed_zoo.explain.observe import BlockAttention
from maskmed_zoo.explain.query_binding import Purity, mean_purity, purity, query_order
from maskmed_zoo.files import write_atomically
from maskmed_zoo.report.query_matrices import (
    Bindings,
    Served,
    binding_figure,
    class_embedding_figure,
    mask_embedding_figure,
)
from maskmed_zoo.report.query_slices import attention_figure, sampling_figure
from maskmed_zoo.runner.display import Display

FILE = "explain.json"
DRAWN = 8
"""Columns of queries, or rows of voxels, in a picture; explain.json has all."""
DEFINITIONS = {
    "windows": (
        "Everything is of one window of the run's patch size per case, at the network's spacing: embeddings, binding "
        "and matching of the one centred on all predicted foreground ('foreground_window'), attention and sampling of "
        "the one centred as asked for ('window'). What lies outside is not seen. 'start' is the window's first voxel "
        "(z, y, x) in the resampled image, negative where that was padded. Stages and blocks are in the order in which "
        "they are computed, the final one last."
    ),
    "class_embeddings": (
        "Query heads: softmax of the class logits, one row per query, the last column being 'no object'. Dense heads: "
        "the class embeddings, one row per query and one column per label, no probabilities; those of learned_class "
        "do not depend on the image."
    ),
    "mask_embeddings": (
        "What is multiplied with a stage's features to give a mask: made from the queries, or the weights of the "
        "1x1x1 convolution where the head has one (these do not depend on the image)."
    ),
    "binding": (
        "A query is bound to the class with its largest class embedding at the final stage, if its mask holds a voxel "
        "with a logit of at least 0 and the class is not 'no object'; background is a class. Dense heads have no "
        "'no object' and their queries act together, so that a binding says less there."
    ),
    "matching": (
        "Against the reference, whatever the query says of itself: a label is served by the query whose final mask "
        "(logit of at least 0) has the highest Dice with the label's reference in the window, if that is above 0. "
        "Labels that were not looked for, and background where some were not, are left out."
    ),
    "purity": (
        "Of a query: the share of its most frequent class among its bindings over cases; of a label: the share of its "
        "most frequent query among the cases in which it is served. Means are weighted by the number of bindings. "
        "Purity is 1 too where all queries answer for one class: 'classes' names those that have a query at all."
    ),
    "attention": (
        "Cross-attention averaged over heads, over the tokens of the stage a block reads. peak: largest weight over "
        "the uniform one; inside: share of attention within the label as predicted; inside_if_uniform: the label's "
        "share of the window; prior: share of the window that the mask prior left open, null where there is none."
    ),
    "sampling": (
        "Of the query voxel of the finest query level that holds the middle of a predicted label, over all heads and "
        "points: distance_mm from the query's centre; its mean weighted by attention; weight, the level's share; "
        "outside, the share of that which lies outside of the window, where zeros are read. Level 0 is the finest. "
        "all_queries: the same over all query voxels of the window."
    ),
}


@dataclass(frozen=True)
class Explained:
    """A case with its two windows."""

    name: str
    foreground: View
    chosen: View


def write_report(out: Path, facts: dict[str, Any], explained: list[Explained], display: Display) -> list[Path]:
    """Write pictures and document to the folder `out`; returns their paths."""
    return _Report(out, facts, explained, display).write()


class _Report:
    """Pictures and the document; queries are sorted by the class they are bound to most often."""

    def __init__(self, out: Path, facts: dict[str, Any], explained: list[Explained], display: Display) -> None:
        self.out, self.facts, self.explained, self.display = out, facts, explained, display
        self.names: list[str] = facts["class_names"]
        bound = [case.foreground.bound for case in explained]
        self.answers = [list(row) for row in zip(*(b for b in bound if b is not None), strict=True)]
        self.purities = [purity(row) for row in self.answers]
        self.order = query_order(self.purities, len(self.names))
        self.rows = [f"{self._class(self.purities[q].most_frequent)}  q{q}" for q in self.order]
        self.notes: list[str] = []
        self._note_absent()

    def write(self) -> list[Path]:
        files: list[Path] = []
        with self.display.task("drawing") as progress:
            for index, case in enumerate(self.explained):
                files += self._draw(case)
                progress(index + 1, len(self.explained))
        if self.answers:
            files.append(self._draw_binding())
        content = self.facts | {
            "definitions": DEFINITIONS,
            "notes": self.notes,
            "binding": self._binding() if self.answers else None,
            "matching": self._matching() if self._is_matched() else None,
            "cases": [self._record(case) for case in self.explained],
            "pictures": [str(path.relative_to(self.out)) for path in files],
        }
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        # Numbers of a row stand side by side.
        text = re.sub(r"\[[\s\d.,eE+-]*\]", lambda found: " ".join(found[0].split()), text)
        write_atomically(self.out / FILE, lambda p: p.write_text(text + "\n", encoding="utf-8"))
        return [*files, self.out / FILE]

    def _note_absent(self) -> None:
        """One line for everything that this network does not have."""
        view, head, neck = self.explained[0].chosen, self.facts["head"], self.facts["neck"]
        if not view.classes:
            self._note(f"head '{head}' has no class embeddings: its masks are the labels themselves; no binding")
        if not view.embeddings:
            self._note(f"head '{head}' has no mask embeddings that are known here")
        if not view.attention:
            self._note(f"head '{head}' has no cross-attention")
        if not view.sampling:
            self._note(f"neck '{neck}' samples no points")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.display.say(text)

    def _draw(self, case: Explained) -> list[Path]:
        """The pictures of one case, in a folder of its own."""
        folder, view = self.out / case.name, case.foreground
        stages = _stage_names(view)
        files: list[Path] = []
        if view.classes:
            is_query_head = view.classes[0].shape[1] > len(self.names)
            panels = [(name, values[self.order]) for name, values in zip(stages, view.classes, strict=True)]
            columns = [*self.names, "no object"] if is_query_head else self.names
            title = f"Class embeddings of {case.name}: what each query says it is"
            path = folder / "class_embeddings.png"
            files.append(class_embedding_figure(path, title, panels, self.rows, columns, probabilities=is_query_head))
        if view.embeddings:
            order = self.order or list(range(len(view.embeddings[0])))
            panels = [(name, values[order]) for name, values in zip(stages, view.embeddings, strict=True)]
            title = f"Mask embeddings of {case.name}: similar channels side by side, and how similar queries are"
            path = folder / "mask_embeddings.png"
            files.append(mask_embedding_figure(path, title, panels, self.rows or self.names))
        shown = lookers(case.chosen)[:DRAWN]
        if case.chosen.attention and shown:
            blocks = [
                (
                    f"block {index + 1} of {len(case.chosen.attention)}\n{_tokens(block)}"
                    + ("\nno mask prior" if block.prior is None else ""),
                    block.weights.numpy(),
                    None if block.prior is None else block.prior.numpy(),
                )
                for index, block in enumerate(case.chosen.attention)
            ]
            title = f"Where queries of {case.name} look; window centred on {case.chosen.aim.reason}"
            files.append(attention_figure(folder / "attention.png", title, case.chosen.scene, shown, blocks))
        elif case.chosen.attention:
            self._note(f"{case.name}: no query answers for a label predicted in the window, so no attention.png")
        for index, sampling in enumerate(case.chosen.sampling):
            points = samples(case.chosen, sampling)[:DRAWN]
            suffix = f"_{index + 1}" if len(case.chosen.sampling) > 1 else ""
            title = f"Where voxels of {case.name} sample; window centred on {case.chosen.aim.reason}"
            path = folder / f"sampling{suffix}.png"
            if points:
                files.append(sampling_figure(path, title, case.chosen.scene, points, sampling.levels))
        return files

    def _draw_binding(self) -> Path:
        """Binding over cases and, where there are references, matching."""
        bindings = Bindings(
            answers=[self.answers[q] for q in self.order],
            purities=[self.purities[q].purity for q in self.order],
            counts=[self.purities[q].answers for q in self.order],
            mean=mean_purity(self.purities),
        )
        served = None
        if self._is_matched():
            usual = self._label_purities()
            rows = [self._served(k) for k in usual]
            served = Served([*usual], [one.most_frequent for one in usual.values()], rows, mean_purity(usual.values()))
        title = f"Binding of queries to classes: {len(self._classes())} of {len(self.names)} classes have a query"
        cases = [case.name for case in self.explained]
        return binding_figure(
            self.out / "binding.png", title, bindings, served, rows=self.rows, cases=cases, classes=self.names
        )

    def _is_matched(self) -> bool:
        return any(case.foreground.served for case in self.explained)

    def _served(self, label: int) -> list[tuple[int, float] | None]:
        """Query and Dice of a label in every case."""
        return [(case.foreground.served or {}).get(label) for case in self.explained]

    def _label_purities(self) -> dict[int, Purity]:
        answers = {k: purity(cell[0] for cell in self._served(k) if cell) for k in range(len(self.names))}
        return {k: found for k, found in answers.items() if found.answers}

    def _binding(self) -> dict[str, Any]:
        queries = [
            {
                "query": q,
                "class": None if one.most_frequent is None else self.names[one.most_frequent],
                "bindings": one.answers,
                "purity": one.purity,
            }
            for q, one in enumerate(self.purities)
        ]
        return {"mean_purity": mean_purity(self.purities), "classes": self._classes(), "queries": queries}

    def _classes(self) -> list[str]:
        """Those that are some query's most frequent one."""
        found = {one.most_frequent for one in self.purities}
        return [name for k, name in enumerate(self.names) if k in found]

    def _matching(self) -> dict[str, Any]:
        by_label = self._label_purities()
        pairs = [(q, k) for case in self.explained for k, (q, _) in (case.foreground.served or {}).items()]
        by_query = {q: purity(k for other, k in pairs if other == q) for q in sorted({q for q, _ in pairs})}
        return {
            "mean_purity_of_labels": mean_purity(by_label.values()),
            "labels": {
                self.names[k]: {"query": one.most_frequent, "cases": one.answers, "purity": one.purity}
                for k, one in by_label.items()
            },
            "mean_purity_of_queries": mean_purity(by_query.values()),
            "queries": [
                {"query": q, "class": self._class(one.most_frequent), "served": one.answers, "purity": one.purity}
                for q, one in by_query.items()
            ],
        }

    def _record(self, case: Explained) -> dict[str, Any]:
        view, chosen = case.foreground, case.chosen
        return {
            "case": case.name,
            "foreground_window": {"start": list(view.start), "centred_on": view.aim.reason},
            "stages": [
                {
                    "size": list(size),
                    "class_embeddings": _rounded(view.classes[i]) if view.classes else None,
                    "mask_embeddings": _rounded(view.embeddings[i]) if view.embeddings else None,
                }
                for i, size in enumerate(view.sizes)
            ],
            "binding": None if view.bound is None else [None if k is None else self.names[k] for k in view.bound],
            "matching": None
            if view.served is None
            else {self.names[k]: {"query": q, "dice": dice} for k, (q, dice) in view.served.items()},
            "window": {"start": list(chosen.start), "centred_on": chosen.aim.reason},
            "attention": attention_record(chosen),
            "sampling": sampling_record(chosen),
        }

    def _class(self, k: int | None) -> str:
        return "unbound" if k is None else self.names[k]


def _stage_names(view: View) -> list[str]:
    """In the order in which they are computed, the final one last."""
    count, sizes = len(view.sizes), view.sizes
    word = "stage" if len(set(sizes)) == count else "output"
    return [f"{word} {i + 1} of {count}\n{_size(size)} voxels" for i, size in enumerate(sizes)]


def _tokens(block: BlockAttention) -> str:
    grid, size = _size(block.weights.shape[1:]), _size(block.stage_size)
    return f"{grid} voxels" if grid == size else f"{grid} tokens\nof {size} voxels"


def _size(size: Sequence[int]) -> str:
    return " × ".join(str(n) for n in size)


def _rounded(values: Any) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in values.tolist()]
