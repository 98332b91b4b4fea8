"""One case in `explain.json`; `definitions` says what its numbers are."""

from __future__ import annotations

from typing import Any

import torch

from maskmed_zoo.explain.measures import attention_facts, finest_query, sampling_facts
from maskmed_zoo.explain.view import Explained, View, extent_mm, lookers, organs


def case_record(case: Explained) -> dict[str, Any]:
    """Embeddings, binding and matching of the foreground's window, attention and sampling of the chosen one."""
    view, chosen = case.foreground, case.chosen
    names = view.scene.classes
    binding = None if view.bound is None else [None if k is None else names[k] for k in view.bound]
    matching = None if view.served is None else {names[k]: one._asdict() for k, one in view.served.items()}
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
        "binding": binding,
        "matching": matching,
        "window": {"start": list(chosen.start), "centred_on": chosen.aim.reason},
        "attention": attention_record(chosen),
        "sampling": sampling_record(chosen),
    }


def attention_record(view: View) -> list[dict[str, Any]]:
    """Where the queries that answer for labels predicted in the window looked, block by block."""
    names = view.scene.classes
    masks = {one.label: torch.from_numpy(view.scene.labels == one.label) for one in organs(view)}
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
    """Distances and shares of weight of the voxels drawn and of all queries, layer by layer."""
    extent, shape = extent_mm(view), view.scene.image.shape
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


def _rounded(values: Any) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in values.tolist()]
