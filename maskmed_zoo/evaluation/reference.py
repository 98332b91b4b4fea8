"""A checksum of a reference, by which scores against other references are told from scores against these."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.labels import Labels


def checksum_of(reference: NDArray[Any], labels: Labels) -> str:
    """Of a label map (z y x) by the names of its labels, 'ignore' too, whatever their values and the array's type."""
    names = sorted(labels.foreground)
    values = [labels.foreground[name] for name in names] + ([] if labels.ignore is None else [labels.ignore])
    table = np.zeros(max(values) + 1, np.uint16)
    table[values] = range(1, len(values) + 1)
    digest = hashlib.sha256(repr((names, reference.shape)).encode())
    for part in reference:
        inside = np.where((part >= 0) & (part < len(table)), part, 0)
        digest.update(table[inside].tobytes())
    return digest.hexdigest()
