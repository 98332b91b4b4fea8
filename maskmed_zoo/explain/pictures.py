"""The pictures of `explain`: embeddings, attention and sampling of each case, binding over all cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from maskmed_zoo.explain.observe import BlockAttention
from maskmed_zoo.explain.over_cases import OverCases
from maskmed_zoo.explain.view import Explained, View, lookers, samples
from maskmed_zoo.report.query_matrices import Panel, binding_figure, class_embedding_figure, mask_embedding_figure
from maskmed_zoo.report.query_slices import Block, attention_figure, sampling_figure

DRAWN = 8
"""Columns of queries, or rows of voxels, in a picture; explain.json has all."""


def draw_binding(out: Path, over: OverCases) -> Path:
    """Binding over cases and, where there are references, matching."""
    title = f"Binding of queries to classes: {len(over.classes)} of {len(over.names)} classes have a query"
    cases = [case.name for case in over.explained]
    return binding_figure(
        out / "binding.png", title, over.bindings(), over.served(), rows=over.rows, cases=cases, classes=over.names
    )


def draw_case(folder: Path, case: Explained, over: OverCases) -> list[Path]:
    """The pictures of one case in a folder of its own: those for which its network has something to show."""
    return [*_embeddings(folder, case, over), *_attention(folder, case), *_sampling(folder, case)]


def _embeddings(folder: Path, case: Explained, over: OverCases) -> Iterator[Path]:
    view = case.foreground
    stages = _stage_names(view)
    if view.classes:
        is_query_head = view.classes[0].shape[1] > len(over.names)
        panels = [Panel(name, values[over.order]) for name, values in zip(stages, view.classes, strict=True)]
        columns = [*over.names, "no object"] if is_query_head else over.names
        title = f"Class embeddings of {case.name}: what each query says it is"
        path = folder / "class_embeddings.png"
        yield class_embedding_figure(path, title, panels, over.rows, columns, probabilities=is_query_head)
    if view.embeddings:
        order = over.order or list(range(len(view.embeddings[0])))
        panels = [Panel(name, values[order]) for name, values in zip(stages, view.embeddings, strict=True)]
        title = f"Mask embeddings of {case.name}: similar channels side by side, and how similar queries are"
        yield mask_embedding_figure(folder / "mask_embeddings.png", title, panels, over.rows or over.names)


def _attention(folder: Path, case: Explained) -> Iterator[Path]:
    view, shown = case.chosen, lookers(case.chosen)[:DRAWN]
    if not (view.attention and shown):
        return
    blocks = [
        Block(
            name=f"block {index} of {len(view.attention)}\n{_tokens(block)}"
            + ("\nno mask prior" if block.prior is None else ""),
            weights=block.weights.numpy(),
            prior=None if block.prior is None else block.prior.numpy(),
        )
        for index, block in enumerate(view.attention, start=1)
    ]
    title = f"Where queries of {case.name} look; window centred on {view.aim.reason}"
    yield attention_figure(folder / "attention.png", title, view.scene, shown, blocks)


def _sampling(folder: Path, case: Explained) -> Iterator[Path]:
    view = case.chosen
    for index, sampling in enumerate(view.sampling, start=1):
        points = samples(view, sampling)[:DRAWN]
        suffix = f"_{index}" if len(view.sampling) > 1 else ""
        title = f"Where voxels of {case.name} sample; window centred on {view.aim.reason}"
        if points:
            yield sampling_figure(folder / f"sampling{suffix}.png", title, view.scene, points, sampling.levels)


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
