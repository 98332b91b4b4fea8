"""F1 of the detection of lesions at an overlap of 0.5, which is lesion_rq; see `lesion_f1`."""

from __future__ import annotations

from maskmed_zoo.evaluation.metrics.lesion_f1 import at_overlap

METRIC = at_overlap(0.5)
