"""What decoders that climb a pyramid level by level need to know about it."""

from __future__ import annotations

from itertools import pairwise

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.errors import JointError
from maskmed_zoo.settings import Size3


def stage_strides(spec: FeatureSpec, decoder: str) -> list[Size3]:
    """How much finer each level is than the one below it, the finest first; `JointError` where that is no integer."""
    if len(spec) < 2:
        raise JointError(f"decoder '{decoder}' needs at least 2 levels, the encoder gives {len(spec)}")
    found: list[Size3] = []
    for level, (fine, coarse) in enumerate(pairwise(spec.strides)):
        if any(c % f for f, c in zip(fine, coarse, strict=True)):
            raise JointError(
                f"decoder '{decoder}' needs every stride to be a multiple of the one above, "
                f"got {coarse} below {fine} at level {level + 1}"
            )
        found.append((coarse[0] // fine[0], coarse[1] // fine[1], coarse[2] // fine[2]))
    return found
