"""A recipe meets a data set: what the recipe leaves open is taken from `dataset.json`, a disagreement is an error."""

from __future__ import annotations

from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.errors import DataError
from maskmed_zoo.recipe.schema import Recipe, twins


def bind(recipe: Recipe, dataset: RawDataset) -> Recipe:
    """The recipe with channels and labels filled in.

    Raises `DataError` if the recipe states other channels or labels than the data set.
    """
    stated = {"channels": recipe.data.channels, "labels": recipe.data.labels}
    found = {"channels": dataset.channels, "labels": dataset.labels}
    for name, value in stated.items():
        if value is not None and value != found[name]:
            raise DataError(
                f"{dataset.root / 'dataset.json'}: {name} {found[name]} differ from the recipe's {value}; "
                f"set data.{name} to the data set's, or to null to take them from it"
            )
    pair = twins(dataset.labels)
    if pair and "x" in recipe.data.mirror_axes:
        raise DataError(
            f"{dataset.root / 'dataset.json'}: '{pair[0]}' and '{pair[1]}' are twins, told apart by place alone; "
            f"take x, left-right, out of data.mirror_axes"
        )
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=found)})
