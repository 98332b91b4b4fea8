"""One case: which labels are scored, what absent ones get, and that a run and folders are scored alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from rich.table import Table

from maskmed_zoo.errors import ArgumentError, DataError
from maskmed_zoo.evaluation.aggregate import summarize_cases
from maskmed_zoo.evaluation.case import LabelMapPair, score_case
from maskmed_zoo.evaluation.metrics import Metric, chosen, metrics
from maskmed_zoo.evaluation.table import tables
from maskmed_zoo.labels import Labels
from maskmed_zoo.metric_settings import MetricSettings

LABELS = Labels({"background": 0, "both": 1, "predicted": 2, "missed": 3, "neither": 4, "ignore": 5})
REFERENCE = np.array([[[0, 1, 1, 3, 3, 0, 0, 5]]])
PREDICTION = np.array([[[0, 1, 0, 0, 0, 2, 2, 4]]])  # the last voxel does not count


def _volumes(pair: LabelMapPair, names: Sequence[str]) -> Mapping[str, float]:
    return {name: float(pair.voxels[name].prediction - pair.voxels[name].reference) for name in names}


def metric(both: float | None, one: float | None) -> Metric:
    return Metric("excess", "Excess", "voxels", False, "voxels too many", both, one, _volumes)


def pair(annotated: Sequence[str] = tuple(LABELS.foreground), identifier: str = "a") -> LabelMapPair:
    return LabelMapPair(identifier, PREDICTION, REFERENCE, LABELS, frozenset(annotated), (1.0, 1.0, 1.0))


def test_dice_by_hand() -> None:
    (dice,) = chosen([])
    scored = score_case(pair(), [dice])
    assert scored.scores["dice"].values == {"both": pytest.approx(2 / 3), "predicted": 0, "missed": 0, "neither": None}
    assert scored.scores["dice"].mean == pytest.approx(2 / 9)
    assert scored.instances is None
    assert (scored.scores["dice"].missed, scored.scores["dice"].false) == ({"missed"}, {"predicted"})


@pytest.mark.parametrize(
    ("both", "one", "expected"),
    [
        (None, None, {"both": -1, "predicted": 2, "missed": -2, "neither": None}),
        (0.0, 99.0, {"both": -1, "predicted": 99, "missed": 99, "neither": 0}),
    ],
)
def test_a_metric_says_what_absent_labels_get(both, one, expected) -> None:
    scored = score_case(pair(), [metric(both, one)])
    assert scored.scores["excess"].values == expected


def test_labels_that_were_not_annotated_have_no_score() -> None:
    scored = score_case(pair(["both"]), chosen([])).scores["dice"]
    assert scored.values.keys() == {"both"}
    assert scored.unannotated == {"predicted", "missed", "neither"}


def test_summary_holds_every_metric_and_its_rules() -> None:
    wanted = [*chosen([]), metric(None, 7.0)]
    summary = summarize_cases([score_case(pair(identifier=name), wanted) for name in "ab"], LABELS.names, wanted)
    assert summary["mean_dice"] == pytest.approx(2 / 9)
    other = summary["metrics"]["excess"]
    assert other["mean_excess"] == pytest.approx((-1 + 7 + 7) / 3)
    assert (other["unit"], other["higher_is_better"]) == ("voxels", False)
    assert "Excess (voxels, lower is better): voxels too many" in other["definition"]
    assert (
        "one that only the reference has (counted in missed) or only the prediction (counted in false) gets 7"
        in (other["definition"])
    )
    assert other["cases"][0]["excess"] == {"both": -1, "predicted": 7, "missed": 7, "neither": None}


def test_every_metric_declares_itself() -> None:
    assert "dice" in metrics()
    for name, each in metrics().items():
        assert each.name == name
        assert each.definition
        assert each.title in each.rules()
        assert ("higher" if each.higher_is_better else "lower") in each.rules()
    with pytest.raises(ArgumentError, match="no metric 'dise'; did you mean 'dice'"):
        chosen(["dise"])


def test_one_table_per_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskmed_zoo.evaluation import table

    known = metrics() | {"excess": metric(None, 7.0)}
    monkeypatch.setattr(table, "metrics", lambda: known)
    wanted = [*chosen([]), known["excess"]]
    summary = summarize_cases([score_case(pair(), wanted)], LABELS.names, wanted)
    shown = tables(summary)
    assert [str(each.title) for each in shown if isinstance(each, Table)] == ["Dice", "Excess, voxels"]
    assert [str(each).strip() for each in shown[2:6:3]] == [metric.meaning() for metric in wanted]
    last = str(shown[-1]).strip().splitlines()
    assert last == [f"{metric.title}: {metric.absence}" for metric in wanted]
    assert all(metric.rules() == f"{metric.meaning()} {metric.absence}" for metric in wanted)


def test_maps_that_cannot_be_compared() -> None:
    for prediction, words in ((PREDICTION[..., 1:], "differ in shape"), (PREDICTION + 0.5, "holds float64 values")):
        wrong = LabelMapPair("a", prediction, REFERENCE, LABELS, frozenset(LABELS.foreground), (1.0, 1.0, 1.0))
        with pytest.raises(DataError, match=f"case 'a'.*{words}"):
            score_case(wrong, chosen([]))


def test_a_slice_is_no_case() -> None:
    flat = replace(pair(), prediction=PREDICTION[0], reference=REFERENCE[0])
    with pytest.raises(DataError, match=r"case 'a': label maps are 2-D, expected 3-D \(z y x\)"):
        score_case(flat, chosen([]))


def test_settings_are_written_once_as_they_are() -> None:
    how = MetricSettings(tolerance={"both": 1.5}, lesion_overlap=0.25)
    summary = summarize_cases([score_case(pair(), chosen([]))], LABELS.names, chosen([]), how)
    assert MetricSettings.model_validate(summary["metric_settings"]) == how
