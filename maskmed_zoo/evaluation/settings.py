"""Settings of metrics as a file, a mapping or an object, checked against the labels that are scored."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskmed_zoo.arguments import PATH, expect
from maskmed_zoo.errors import DataError, RecipeError
from maskmed_zoo.files import check_depth
from maskmed_zoo.labels import Labels
from maskmed_zoo.metric_settings import MetricSettings

SettingsSource = str | Path | Mapping[str, Any] | MetricSettings
"""A YAML file, its content, or what is made of it."""
SECTION = "evaluation"
"""Of a recipe, in which they stand; a file may have it too."""


def metric_settings(source: SettingsSource) -> MetricSettings:
    """Settings, read from a YAML file where they are no mapping.

    Raises `RecipeError` with every problem, each with file:line:col, the key and the nearest name, and `ArgumentError`
    for what is no source of settings.
    """
    if isinstance(source, MetricSettings):
        return source
    expect("metric_settings", source, (*PATH, Mapping), "a YAML file, or its content")
    from maskmed_zoo.recipe import strict_yaml
    from maskmed_zoo.recipe.loader import validated

    if isinstance(source, Mapping):
        check_depth(source, "metric settings", error=RecipeError)
        document = strict_yaml.Document("", "metric settings")
        document.data = copy.deepcopy(dict(source))
    else:
        document = strict_yaml.read(Path(source))
        if not isinstance(document.data, dict):
            raise RecipeError(f"{document.source}:1:1: settings of metrics are a mapping, as in 'tolerance: 2.0'")
    if [*document.data] == [SECTION] and isinstance(document.data[SECTION], dict):
        document.data = document.data[SECTION]
        document.places = {path[1:]: place for path, place in document.places.items() if path[:1] == (SECTION,)}
    return validated(document, MetricSettings)


def check_names(settings: MetricSettings, labels: Labels) -> None:
    """Raise `DataError` where a label is named that there is none of."""
    if problem := settings.unknown_label(labels.foreground):
        raise DataError(f"metric settings: {problem}; correct the name, or take it out")
