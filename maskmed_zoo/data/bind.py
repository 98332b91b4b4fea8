"""A recipe meets its data sets: what the recipe leaves open is taken from `dataset.json`, a disagreement is an error.

Labels of several data sets are one label where they have one name, whatever their values.
"""

from __future__ import annotations

import json
import shlex

from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.errors import DataError
from maskmed_zoo.labels import Labels
from maskmed_zoo.recipe.schema import Recipe


def bind(recipe: Recipe, *datasets: RawDataset) -> Recipe:
    """The recipe with channels and labels filled in, those of all data sets together.

    Raises `DataError` if the recipe states others, or the data sets have different channels.
    """
    files = [str(dataset.root / "dataset.json") for dataset in datasets]
    channels = datasets[0].channels
    for dataset, file in zip(datasets, files, strict=True):
        if dataset.channels != channels:
            raise DataError(
                f"{file}: channels {list(dataset.channels)}, {files[0]} has {list(channels)}; "
                f"train on data sets of the same channels, with the same names"
            )
    labels = Labels.merged(dataset.labels for dataset in datasets)
    where = ", ".join(files)
    stated = {"channels": recipe.data.channels, "labels": recipe.data.labels}
    found = {"channels": channels, "labels": labels}
    for name, value in stated.items():
        if value is not None and value != found[name]:
            plain = dict(labels) if name == "labels" else channels
            text = shlex.quote(f"data.{name}={json.dumps(plain, ensure_ascii=False)}")
            raise DataError(
                f"{where}: {name} {found[name]} differ from the recipe's {value}; "
                f"write --set {text}, or --set data.{name}=null to take them from the data"
            )
    problem = recipe.data.mirrored_pair(labels)
    if problem:
        raise DataError(f"{where}: {problem}")
    problem = recipe.evaluation.unknown_label(labels.foreground)
    if problem:
        raise DataError(f"{where}: the recipe's evaluation: {problem}; correct the name, or take it out")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=found)})
