"""Several tests at once: Holm's correction.

Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
"""

from __future__ import annotations

from collections.abc import Sequence

LEVEL = 0.05
"""Of the tests: how often equal methods may be told apart by chance in one family of them."""


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrected p of a family of tests, in their order; what has no p is no test of the family."""
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        corrected[index] = largest
    return corrected
