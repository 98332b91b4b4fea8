"""Metrics of label maps, one file each.

A metric is a module of this folder with a `METRIC`; modules are found by looking into the folder. The framework decides
which labels are scored (`evaluation.case`), so a metric computes values and nothing else; what it declares is printed
with every table and written into every file.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from maskmed_zoo.errors import ArgumentError, nearest
from maskmed_zoo.metric_settings import MetricSettings

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair

DEFAULT = "dice"
"""The metric of every summary, whatever others are asked for."""


@dataclass(frozen=True)
class Metric:
    """What a number means, and how it is computed.

    `compute` gives values for some labels, by name, of a `LabelMapPair`, None where there is none by definition.
    `both_absent` and `one_absent` are the values of a label that neither map has, or only one. `both_absent` None: the
    label is left out of averages and counted; `one_absent` None: it is computed like any other; "diagonal": the image's
    diagonal in mm, the worst of distances. `details` says what of the settings the values depend on.
    `from_probabilities`: it takes them, not the map.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    definition: str
    both_absent: float | None
    one_absent: float | Literal["diagonal"] | None
    compute: Callable[[LabelMapPair, Sequence[str]], Mapping[str, float | None]]
    details: Callable[[MetricSettings], str] | None = None
    from_probabilities: bool = False

    def rules(self, settings: MetricSettings | None = None) -> str:
        """Unit, direction, definition with these settings (default: the defaults), and what absent labels get."""
        return f"{self.meaning(settings)} {self.absence}"

    def meaning(self, settings: MetricSettings | None = None) -> str:
        """The rules without what absent labels get."""
        unit = f"{self.unit}, " if self.unit else ""
        details = f"; {self.details(settings or MetricSettings())}" if self.details else ""
        better = "higher" if self.higher_is_better else "lower"
        return f"{self.title} ({unit}{better} is better): {self.definition}{details}."

    @property
    def absence(self) -> str:
        """What a label gets that neither of the maps has, or only one."""
        both = (
            "is left out and counted in absent"
            if self.both_absent is None
            else f"(counted in absent) gets {self.both_absent:g}"
        )
        return (
            f"A label absent in reference and prediction {both}; one that only the reference has (counted in missed) "
            f"or only the prediction (counted in false) {self.one_absent_words}."
        )

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest value there can be: what has no unit is a share, what has one begins at 0."""
        return 0.0, math.inf if self.unit else 1.0

    @property
    def one_absent_words(self) -> str:
        """What a label gets that only one of the maps has."""
        if self.one_absent is None:
            return "is computed as any other"
        return "gets the image's diagonal" if self.one_absent == "diagonal" else f"gets {self.one_absent:g}"


@cache
def metrics() -> dict[str, Metric]:
    """All metrics by name."""
    found: dict[str, Metric] = {}
    for info in pkgutil.iter_modules(__path__):
        metric = getattr(importlib.import_module(f"{__name__}.{info.name}"), "METRIC", None)
        if isinstance(metric, Metric):
            found[metric.name] = metric
    return found


def chosen(names: str | Sequence[str]) -> list[Metric]:
    """The default metric, then those named; raises `ArgumentError` for a name that there is none of."""
    known, names = metrics(), [names] if isinstance(names, str) else names
    for name in names:
        if name not in known:
            hint = nearest(name, known) or nearest(name.lower(), known)
            raise ArgumentError(f"no metric '{name}'{hint} (metrics: {', '.join(sorted(known))})")
    return [known[name] for name in dict.fromkeys([DEFAULT, *names])]
