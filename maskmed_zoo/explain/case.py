"""One case of `explain`: the volume as the network sees it, a window of it, and what the network does there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from maskmed_zoo.contracts import Size3
from maskmed_zoo.data.dataset import Case, RawDataset, load_case
from maskmed_zoo.data.preprocess import resample_labels
from maskmed_zoo.device import autocast
from maskmed_zoo.errors import UserError
from maskmed_zoo.explain.measures import attention_facts, finest_query, sampling_facts
from maskmed_zoo.explain.observe import BlockAttention, Sampling, observe
from maskmed_zoo.explain.places import Point, centroid, largest_label, middle_voxel, on_other_grid, window_around
from maskmed_zoo.explain.query_binding import bound_classes, class_weights, serving_queries
from maskmed_zoo.inference.sliding_window import Windows
from maskmed_zoo.recipe.schema import class_names
from maskmed_zoo.report.query_slices import Looker, Sampled, Scene
from maskmed_zoo.runner.predict import Predictor

Array = NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """A case at the network's spacing, padded to the window: image (c z y x), predicted labels (z y x), reference.

    The reference is negative where voxels do not count; `matched` are the labels that were looked for in it.
    """

    name: str
    image: torch.Tensor
    labels: Array
    reference: Array | None
    matched: tuple[int, ...]
    original: Size3
    padding: tuple[int, int, int]
    unpadded: Size3


@dataclass(frozen=True)
class Aim:
    """Where a window is to lie in the padded volume, why there, and the label to be drawn first, 0 for none."""

    point: Point
    reason: str
    label: int = 0


@dataclass(frozen=True)
class View:
    """What the network does in one window; outputs and blocks in the order they are computed in, the final one last."""

    start: Size3
    aim: Aim
    scene: Scene
    classes: list[Array]
    embeddings: list[Array]
    sizes: list[Size3]
    bound: list[int | None] | None
    served: dict[int, tuple[int, float]] | None
    attention: list[BlockAttention]
    sampling: list[Sampling]


def read_subject(predictor: Predictor, name: str, case: Case, dataset: RawDataset | None) -> Subject:
    """Read, prepare and segment a case."""
    image, reference, geometry = load_case(case, dataset)
    prepared = predictor.prepare(image, geometry)
    shape = (prepared.shape[1], prepared.shape[2], prepared.shape[3])
    labels = predictor.probabilities(prepared).argmax(0).numpy()
    padding = Windows(shape, predictor.recipe.data.patch_size, 0.0).padding
    matched: tuple[int, ...] = ()
    if reference is not None and dataset is not None:
        merged = predictor.recipe.data.labels or {}
        names, looked_for = class_names(merged), dataset.annotated(case)
        # Where a label was not looked for, it may hide in the background.
        matched = tuple(
            k for k, name in enumerate(names) if name in looked_for or (k == 0 and looked_for >= {*names[1:]})
        )
        reference = resample_labels(dataset.renumbering(merged)[reference], shape)
        reference = np.where(reference == merged.get("ignore"), -1, reference)
        reference = np.pad(reference, padding, constant_values=-1)
    return Subject(
        name=name,
        image=F.pad(prepared, [side for sides in reversed(padding) for side in sides]),
        labels=np.pad(labels, padding),
        reference=reference,
        matched=matched,
        original=(image.shape[1], image.shape[2], image.shape[3]),
        padding=(padding[0][0], padding[1][0], padding[2][0]),
        unpadded=shape,
    )


def foreground_of(subject: Subject) -> Aim:
    """The middle of everything predicted."""
    mask = subject.labels > 0
    if mask.any():
        return Aim(centroid(mask), "all predicted foreground")
    return Aim(centroid(np.ones_like(mask)), "the volume, as no foreground is predicted")


def aim_of(subject: Subject, label: int | None, point: Point | None, names: Sequence[str]) -> Aim:
    """The point given (z, y, x in the image), the middle of the label given, or that of the largest one predicted.

    Raises `UserError` for a point outside of the image.
    """
    if point is not None:
        if not all(0 <= p < n for p, n in zip(point, subject.original, strict=True)):
            raise UserError(
                f"case '{subject.name}': point {','.join(f'{p:g}' for p in point)} lies outside of its "
                f"{' x '.join(map(str, subject.original))} voxels (z, y, x, from 0)"
            )
        z, y, x = (
            p + b
            for p, b in zip(on_other_grid(point, subject.original, subject.unpadded), subject.padding, strict=True)
        )
        there = int(subject.labels[round(z), round(y), round(x)])
        return Aim((z, y, x), f"voxel {tuple(int(p) for p in point)} of the image", there)
    largest = largest_label(subject.labels)
    if label is not None and (subject.labels == label).any():
        return Aim(centroid(subject.labels == label), f"'{names[label]}' as predicted", label)
    if largest is None:
        return foreground_of(subject)
    missing = "" if label is None else f", as '{names[label]}' is not predicted"
    reason = f"'{names[largest]}', the largest label predicted{missing}"
    return Aim(centroid(subject.labels == largest), reason, largest)


def look(predictor: Predictor, subject: Subject, aim: Aim) -> View:
    """Run the network on the window around a point."""
    data = predictor.recipe.data
    place = window_around(aim.point, subject.labels.shape, data.patch_size)
    window = subject.image[(slice(None), *place)]
    with autocast(predictor.dtype, predictor.device):
        seen = observe(predictor.model, window.to(predictor.device))
    final, stages = seen.output.stages[0], seen.output.stages[::-1]
    classes = [c.cpu().numpy() for stage in stages if (c := class_weights(stage)) is not None]
    served = None
    if classes and subject.reference is not None and final.masks is not None:
        reference = torch.from_numpy(subject.reference[place]).to(predictor.device)
        served = serving_queries(final.masks[0], reference, subject.matched)
    labels = seen.output.log_probabilities()[0].argmax(0).cpu().numpy()
    z, y, x = (p.start - b for p, b in zip(place, subject.padding, strict=True))
    return View(
        start=(z, y, x),
        aim=aim,
        scene=Scene(window[0].numpy(), labels, data.spacing, class_names(data.labels or {})),
        classes=classes,
        embeddings=[e.float().cpu().numpy() for e in seen.mask_embeddings[::-1]],
        sizes=[(s.shape[2], s.shape[3], s.shape[4]) for s in (stage.spatial for stage in stages)],
        bound=bound_classes(final) if classes else None,
        served=served,
        attention=seen.attention,
        sampling=seen.sampling,
    )


def organs(view: View) -> list[tuple[int, Size3]]:
    """Foreground labels predicted in the window, the one aimed at and then the largest first, with their middle."""
    counts = np.bincount(view.scene.labels.ravel())
    found = sorted(np.flatnonzero(counts[1:]) + 1, key=lambda k: (k != view.aim.label, -counts[k]))
    return [(k, middle_voxel(view.scene.labels == k)) for k in map(int, found)]


def lookers(view: View) -> list[Looker]:
    """The queries that answer for labels predicted in the window."""
    bound = view.bound or []
    return [Looker(q, label, voxel) for label, voxel in organs(view) for q, k in enumerate(bound) if k == label]


def samples(view: View, sampling: Sampling) -> list[Sampled]:
    """The points of the voxel in the middle of every label predicted in the window."""
    shape, extent = view.scene.image.shape, _extent(view)
    sampled: list[Sampled] = []
    for label, voxel in organs(view):
        query = finest_query(sampling, voxel, (shape[0], shape[1], shape[2]))
        points, weights = sampling.locations[query], sampling.weights[query]  # (h l p 3) and (h l p)
        levels = torch.tensor(sampling.levels)[None, :, None].expand(weights.shape)
        z, y, x = (int(c * n) for c, n in zip(sampling.centres[query].tolist(), shape, strict=True))
        sampled.append(
            Sampled(
                name=view.scene.classes[label],
                voxel=(z, y, x),
                center=(sampling.centres[query] * extent).numpy(),
                points=(points * extent).flatten(0, 2).numpy(),
                weights=(weights / weights.sum()).flatten().numpy(),
                levels=levels.flatten().numpy(),
            )
        )
    return sampled


def attention_record(view: View) -> list[dict[str, Any]]:
    """For explain.json: where the lookers looked, block by block."""
    names = view.scene.classes
    masks = {label: torch.from_numpy(view.scene.labels == label) for label, _ in organs(view)}
    return [
        {
            "block": index,
            "stage_size": list(block.stage_size),
            "tokens": list(block.weights.shape[1:]),
            "queries": [
                {"query": one.query, "class": names[one.label], **attention_facts(block, one.query, masks[one.label])}
                for one in lookers(view)
            ],
        }
        for index, block in enumerate(view.attention)
    ]


def sampling_record(view: View) -> list[dict[str, Any]]:
    """For explain.json: distances and shares of weight, of the voxels drawn and of all queries, layer by layer."""
    extent, shape = _extent(view), view.scene.image.shape
    layers: list[dict[str, Any]] = []
    for index, sampling in enumerate(view.sampling):
        voxels: list[dict[str, Any]] = []
        for label, voxel in organs(view):
            query = finest_query(sampling, voxel, (shape[0], shape[1], shape[2]))
            facts = sampling_facts(sampling, slice(query, query + 1), extent)
            voxels.append({"class": view.scene.classes[label], "voxel": list(voxel), "query": query, "levels": facts})
        everything = sampling_facts(sampling, slice(None), extent)
        layers.append({"layer": index, "voxels": voxels, "all_queries": everything})
    return layers


def _extent(view: View) -> torch.Tensor:
    """Size of the window in mm."""
    return torch.tensor([n * mm for n, mm in zip(view.scene.image.shape, view.scene.spacing, strict=True)])
