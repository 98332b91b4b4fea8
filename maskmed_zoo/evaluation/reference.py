"""A checksum of a reference, by which scores against other references are told from scores against these."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.labels import Labels


def checksum_of(reference: NDArray[Any], labels: Labels) -> str:
    """Of a label map (z y x) by the names of its foreground labels, whatever their values and the type of the array."""
    values = labels.foreground
    names = sorted(values)
    table = np.zeros(max(values.values()) + 1, np.uint16)
    for number, name in enumerate(names, start=1):
        table[values[name]] = number
    digest = hashlib.sha256(repr((names, reference.shape)).encode())
    for part in reference:
        inside = np.where((part >= 0) & (part < len(table)), part, 0)
        digest.update(table[inside].tobytes())
    return digest.hexdigest()
