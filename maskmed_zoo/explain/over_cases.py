"""Binding and matching over all cases: which query answers for which class, and how exclusively."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskmed_zoo.explain.query_binding import Purity, mean_purity, purity, query_order
from maskmed_zoo.explain.view import Explained
from maskmed_zoo.report.query_matrices import Bindings, Served, ServingQuery


class OverCases:
    """`answers[query][case]` is the class a query is bound to, empty if the head has no queries.

    `order` are the queries sorted by the class they are bound to most often, `rows` their names in that order.
    """

    def __init__(self, explained: Sequence[Explained], names: Sequence[str]) -> None:
        self.explained, self.names = explained, names
        bound = [case.foreground.bound for case in explained]
        self.answers = [list(row) for row in zip(*(b for b in bound if b is not None), strict=True)]
        self.purities = [purity(row) for row in self.answers]
        self.order = query_order(self.purities, len(names))
        self.rows = [f"{self._class(self.purities[q].most_frequent)}  q{q}" for q in self.order]

    @property
    def classes(self) -> list[str]:
        """The classes that some query answers for most often."""
        found = {one.most_frequent for one in self.purities}
        return [name for k, name in enumerate(self.names) if k in found]

    def bindings(self) -> Bindings:
        """What the picture shows of the binding."""
        return Bindings(
            answers=[self.answers[q] for q in self.order],
            purities=[self.purities[q].purity for q in self.order],
            counts=[self.purities[q].answers for q in self.order],
            mean=mean_purity(self.purities),
        )

    def served(self) -> Served | None:
        """What the picture shows of the matching; None if no label is served in any case."""
        usual = self._label_purities()
        if not usual:
            return None
        return Served(
            labels=[*usual],
            usual=[one.most_frequent for one in usual.values()],
            queries=[self._served(label) for label in usual],
            mean=mean_purity(usual.values()),
        )

    def binding_record(self) -> dict[str, Any] | None:
        """The binding in `explain.json`; None if the head has no queries."""
        if not self.answers:
            return None
        queries = [
            {
                "query": q,
                "class": None if one.most_frequent is None else self.names[one.most_frequent],
                "bindings": one.answers,
                "purity": one.purity,
            }
            for q, one in enumerate(self.purities)
        ]
        return {"mean_purity": mean_purity(self.purities), "classes": self.classes, "queries": queries}

    def matching_record(self) -> dict[str, Any] | None:
        """The matching in `explain.json`; None if no label is served in any case."""
        by_label = self._label_purities()
        if not by_label:
            return None
        labels: dict[int, list[int]] = {}
        for case in self.explained:
            for label, one in (case.foreground.served or {}).items():
                labels.setdefault(one.query, []).append(label)
        by_query = {query: purity(labels[query]) for query in sorted(labels)}
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

    def _served(self, label: int) -> list[ServingQuery | None]:
        """The query that serves a label in each case."""
        return [(case.foreground.served or {}).get(label) for case in self.explained]

    def _label_purities(self) -> dict[int, Purity]:
        """The purity of every label that is served in some case."""
        answers = {k: purity(one.query for one in self._served(k) if one) for k in range(len(self.names))}
        return {k: found for k, found in answers.items() if found.answers}

    def _class(self, k: int | None) -> str:
        return "unbound" if k is None else self.names[k]
