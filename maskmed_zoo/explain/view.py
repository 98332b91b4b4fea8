"""What the network does in one window of a case, and the queries and voxels of it that are worth a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from maskmed_zoo.device import autocast
from maskmed_zoo.explain.case import Aim, Subject
from maskmed_zoo.explain.measures import finest_query
from maskmed_zoo.explain.observe import BlockAttention, Sampling, observe
from maskmed_zoo.explain.places import middle_voxel, window_around
from maskmed_zoo.explain.query_binding import bound_classes, class_weights, serving_queries
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.report.query_matrices import ServingQuery
from maskmed_zoo.report.query_slices import Looker, Sampled, Scene
from maskmed_zoo.settings import Size3

Array = NDArray[Any]


class Organ(NamedTuple):
    """A foreground label predicted in a window, and the voxel in the middle of it."""

    label: int
    middle: Size3


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
    served: dict[int, ServingQuery] | None
    attention: list[BlockAttention]
    sampling: list[Sampling]


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
        scene=Scene(window[0].numpy(), labels, data.spacing, list(predictor.labels.names)),
        classes=classes,
        embeddings=[e.float().cpu().numpy() for e in seen.mask_embeddings[::-1]],
        sizes=[(s.shape[2], s.shape[3], s.shape[4]) for s in (stage.spatial for stage in stages)],
        bound=bound_classes(final) if classes else None,
        served=served,
        attention=seen.attention,
        sampling=seen.sampling,
    )


def organs(view: View) -> list[Organ]:
    """Those predicted in the window, the one aimed at and then the largest first."""
    counts = np.bincount(view.scene.labels.ravel())
    found = sorted(np.flatnonzero(counts[1:]) + 1, key=lambda k: (k != view.aim.label, -counts[k]))
    return [Organ(k, middle_voxel(view.scene.labels == k)) for k in map(int, found)]


def lookers(view: View) -> list[Looker]:
    """The queries that answer for labels predicted in the window."""
    bound = view.bound or []
    return [Looker(q, one.label, one.middle) for one in organs(view) for q, k in enumerate(bound) if k == one.label]


def samples(view: View, sampling: Sampling) -> list[Sampled]:
    """The points of the voxel in the middle of every label predicted in the window."""
    shape, extent = view.scene.image.shape, extent_mm(view)
    sampled: list[Sampled] = []
    for organ in organs(view):
        query = finest_query(sampling, organ.middle, (shape[0], shape[1], shape[2]))
        points, weights = sampling.locations[query], sampling.weights[query]  # (h l p 3) and (h l p)
        levels = torch.tensor(sampling.levels)[None, :, None].expand(weights.shape)
        z, y, x = (int(c * n) for c, n in zip(sampling.centers[query].tolist(), shape, strict=True))
        sampled.append(
            Sampled(
                name=view.scene.classes[organ.label],
                voxel=(z, y, x),
                center=(sampling.centers[query] * extent).numpy(),
                points=(points * extent).flatten(0, 2).numpy(),
                weights=(weights / weights.sum()).flatten().numpy(),
                levels=levels.flatten().numpy(),
            )
        )
    return sampled


def extent_mm(view: View) -> torch.Tensor:
    """Size of the window in mm."""
    return torch.tensor([n * mm for n, mm in zip(view.scene.image.shape, view.scene.spacing, strict=True)])


@dataclass(frozen=True)
class Explained:
    """A case with its two windows: around everything predicted, and where it was asked for."""

    name: str
    foreground: View
    chosen: View
