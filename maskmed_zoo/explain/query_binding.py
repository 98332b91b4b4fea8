"""Which query answers for which class, and how exclusively, over several images (MaskMed Fig. 3).

There are two views: the likeliest class of a query's own distribution (binding), and the query whose mask lies on a
label's reference, whatever its own class is (matching). Purity is the share of the most frequent answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from maskmed_zoo.contracts import StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.report.query_matrices import ServingQuery


@dataclass(frozen=True)
class Purity:
    """The most frequent answer (None without any), the number of answers, and the share of that one among them."""

    most_frequent: int | None
    answers: int
    purity: float | None


def class_weights(stage: StageOutput) -> Tensor | None:
    """(n k+1) probabilities, "no object" last, of a query head; (n k) class embeddings of a dense head; else None.

    They are those of the first sample of the batch, in float32.
    """
    if stage.class_logits is None:
        return None
    classes = stage.class_logits[0].detach().float()
    return classes.softmax(-1) if stage.logits is None else classes


def bound_classes(stage: StageOutput) -> list[int | None]:
    """The class each query answers for in the first sample: its largest class weight, if its mask is not empty.

    A mask is the voxels whose logit is at least 0. None: empty mask, or "no object".
    """
    classes = class_weights(stage)
    if classes is None or stage.masks is None:
        raise JointError("the head has no queries to bind to classes")
    chosen = classes.argmax(-1).tolist()
    no_object = classes.shape[-1] - 1 if stage.logits is None else None
    filled = (stage.masks[0] >= 0).flatten(1).any(1).tolist()
    return [k if has_voxels and k != no_object else None for k, has_voxels in zip(chosen, filled, strict=True)]


def serving_queries(masks: Tensor, reference: Tensor, labels: Sequence[int]) -> dict[int, ServingQuery]:
    """The query whose mask has the highest Dice with each label's reference, and that Dice.

    `masks` (n d h w) are logits, `reference` (d h w) integers, negative where voxels do not count. Labels that the
    reference lacks, or that no mask touches, are left out; of equal queries the first is taken.
    """
    counted = (reference >= 0).flatten()
    inside = ((masks >= 0).flatten(1) & counted).float()
    present = [label for label in labels if bool((reference == label).any())]
    served: dict[int, ServingQuery] = {}
    for label in present:
        target = (reference == label).flatten().float()
        dice = 2 * (inside @ target) / (inside.sum(1) + target.sum())
        best = int(dice.argmax())
        if dice[best] > 0:
            served[label] = ServingQuery(best, float(dice[best]))
    return served


def purity(answers: Iterable[int | None]) -> Purity:
    """The most frequent of the answers that are not None; of equally frequent ones the smallest is named."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return Purity(None, 0, None)
    best = min(counts, key=lambda answer: (-counts[answer], answer))
    return Purity(best, counts.total(), counts[best] / counts.total())


def mean_purity(purities: Iterable[Purity]) -> float | None:
    """Mean weighted by the number of answers: the share of all answers that are their query's most frequent one."""
    counted = [p for p in purities if p.purity is not None]
    total = sum(p.answers for p in counted)
    return sum(p.answers * (p.purity or 0) for p in counted) / total if total else None


def query_order(purities: Sequence[Purity], classes: int) -> list[int]:
    """Queries sorted by their most frequent class, those without one last."""
    return sorted(range(len(purities)), key=lambda q: classes if (k := purities[q].most_frequent) is None else k)
