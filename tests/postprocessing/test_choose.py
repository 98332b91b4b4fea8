"""What is kept: what truly helps, and by chance nothing in more than one family of twenty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import bootstrap

from maskmed_zoo.evaluation.statistics import bootstrap as resampling
from maskmed_zoo.evaluation.statistics.bootstrap import paired_bootstrap
from maskmed_zoo.evaluation.statistics.interval import mean_interval, mean_p
from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.postprocessing.choose import choose, compared, cross_fitted, kept, overall
from maskmed_zoo.postprocessing.counts import CaseCounts, LabelCounts
from maskmed_zoo.postprocessing.document import Document, document_of


def counts(*parts: tuple[int, int], filled: Sequence[tuple[int, int]] | None = None) -> LabelCounts:
    """Parts of so many voxels of 1 mm³, so many of them right; the reference is one part of 1000."""
    plain, after = (np.array([(n, n, right) for n, right in side], np.int64) for side in (parts, filled or parts))
    return LabelCounts(plain, after, 1000, np.array([1000.0]), 1.0)


def livers(*parts: tuple[int, int]) -> list[CaseCounts]:
    """Twenty patients with a first part of 1000 voxels and others, of which the last grows from one to the next."""
    *others, (last, right) = parts
    return [
        CaseCounts(str(index), str(index), {"liver": counts((1000, 900), *others, (last + index, right))})
        for index in range(20)
    ]


def verdicts(cases: list[CaseCounts]) -> list[str]:
    """Of the candidates for the liver: holes, parts under 100 mm³, the largest, parts under 1000 mm³."""
    found = choose(cases, ["liver"])
    assert [(one.step.do, one.step.below_mm3) for one in found] == [
        ("fill_holes", None), ("remove_small", 100.0), ("keep_largest", None), ("remove_small", 1000.0)
    ]  # fmt: skip
    return [one.verdict for one in found]


def study(patients: int = 24, seed: int = 0) -> list[CaseCounts]:
    """Of a liver with false parts, a spleen with true holes and true second parts, and a tumour where all is right."""
    random = np.random.default_rng(seed)
    cases: list[CaseCounts] = []
    for index in range(patients):
        right, false, hole, second = random.integers([800, 100, 50, 100], [950, 200, 90, 200]).tolist()
        labels = {
            "liver": counts((1000, right), (false, 0)),
            "spleen": counts((900, 750), (second, second), filled=[(900 + hole, 750), (second, second)]),
            "tumour": counts((1000, right)),
        }
        cases.append(CaseCounts(f"case_{index}", f"patient_{index // 2}", labels))
    return cases


NAMES = ["liver", "spleen", "tumour"]
LARGEST = Step(label="liver", do="keep_largest")


def test_what_helps_is_kept_and_nothing_else() -> None:
    found = choose(study(), NAMES)
    assert kept(found) == [LARGEST]
    assert len(found) == 12
    said = {(one.step.label, one.step.do, one.step.below_mm3): one.verdict for one in found}
    assert said["liver", "remove_small", 1000.0] == "changes the same as one above"
    assert said["liver", "remove_small", 100.0] == "changes no score"
    assert said["spleen", "keep_largest", None] == said["spleen", "fill_holes", None] == "makes it worse"
    assert {one.verdict for one in found if one.step.label == "tumour"} == {"changes no score"}
    row = next(one.numbers for one in found if one.step == LARGEST)
    assert row["interval"][0] > 0
    assert row["p_holm"] == pytest.approx(4 * row["p"]), "four were tested"
    assert (row["better"], row["equal"], row["worse"]) == (24, 0, 0)


def test_of_rules_that_help_the_best_is_kept() -> None:
    none, kept_, less = "changes no score", "kept", "helps, but less than the one kept"
    assert verdicts(livers((150, 0), (50, 0))) == [none, less, kept_, "changes the same as one above"]
    assert verdicts(livers((1500, 90), (50, 0)))[1] == kept_
    assert verdicts(livers((1500, 1), (50, 40)))[1:3] == ["makes it worse", "makes it worse"]
    assert verdicts(livers((150, 140), (50, 0))) == [none, kept_, "makes it worse", "changes the same as one above"]


def test_few_patients_show_nothing() -> None:
    """Five of five that gain: each bootstrap resample gains too, chance does so once in sixteen (two-sided)."""
    (liver, *_) = compared([{str(case): 0.01 + case / 1000 for case in range(5)}], {})
    assert liver["interval"][0] > 0
    assert liver["p"] == 1 / 16
    assert kept(choose(study(5), NAMES)) == []


def test_patients_with_several_cases_count_once() -> None:
    """Four patients with six cases each are four."""
    cases = [CaseCounts(case.name, f"p{index % 4}", case.labels) for index, case in enumerate(study())]
    assert kept(choose(cases, NAMES)) == []
    assert kept(choose(study(), NAMES))


def test_by_chance_nothing_is_kept() -> None:
    """Twelve candidates that change a few of twenty cases for better or worse alike, some of them together."""
    random, families, wrong, plain = np.random.default_rng(0), 200, 0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 1000)
        for _ in range(families):
            common, own = random.standard_t(3, (2, 12, 20)) * random.choice([1, 0], (2, 12, 1))
            table = (common[:1] + own) * (random.random((12, 20)) < random.uniform(0.2, 1, (12, 1)))
            rows = compared(
                [dict(zip(map(str, range(20)), row, strict=True)) for row in table.tolist() if any(row)], {}
            )
            wrong += any(row["p_holm"] < 0.05 and row["mean"] > 0 for row in rows)
            plain += any(row["interval"][0] > 0 for row in rows)
    assert wrong / families <= 0.05
    assert plain / families > 0.1, "without a correction something would often be kept"


def test_the_bootstrap_is_scipys() -> None:
    values = np.random.default_rng(1).gamma(2.0, 1.0, 40) - 1.2
    (ours,) = paired_bootstrap([{str(case): value for case, value in enumerate(values.tolist())}])
    theirs = bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(0))
    np.testing.assert_allclose(ours.interval, theirs.confidence_interval, atol=0.02)
    distribution = theirs.bootstrap_distribution
    assert ours.p == pytest.approx(2 * min((distribution <= 0).mean(), (distribution >= 0).mean()), abs=0.01)


def test_the_bootstrap_draws_patients() -> None:
    """Two cases of each, both alike: the interval is that of one each."""
    values = np.random.default_rng(2).normal(size=15).tolist()
    single = {str(case): value for case, value in enumerate(values)}
    twice = {f"{case}{copy}": value for case, value in single.items() for copy in "ab"}
    (one,), (two,) = paired_bootstrap([single]), paired_bootstrap([twice], {case: case[:-1] for case in twice})
    np.testing.assert_allclose(one.interval, two.interval)
    (empty,) = paired_bootstrap([{"a": None, "b": 0.0}])
    assert empty.interval == (0, 0)
    assert empty.p == 1


def test_what_is_cross_fitted_knows_nothing_of_its_own_patients() -> None:
    """With the one case that gains left out, nothing is chosen for it; a true gain stays."""
    cases = study()
    changes = cross_fitted(cases, NAMES)
    assert changes == overall(cases, kept(choose(cases, NAMES))), "the same is chosen in every part"
    assert min(changes.values()) > 0
    assert cross_fitted(cases[:2], NAMES) is None
    nothing = cross_fitted(study(8), NAMES)
    assert nothing
    assert set(nothing.values()) == {0.0}


def test_the_document() -> None:
    document = document_of(study(), NAMES, weights="best", sha256="a", date="2026-01-01")
    assert (document.cases, document.patients) == (24, 12)
    assert document.together
    assert document.together == document.cross_fitted
    assert document.together.interval[0] > 0
    again = Document.model_validate_json(document.model_dump_json())
    assert again == document
    partly = [CaseCounts("a", "a", {}), CaseCounts("b", "b", {"tumour": counts((1000, 5))})]
    empty = document_of(partly, NAMES, weights="last", sha256="a", date="")
    assert empty.steps == []
    assert {row.verdict for row in empty.candidates} == {"changes no score", "annotated in no case"}


def test_p_of_a_skewed_mean_is_where_its_interval_ends() -> None:
    """Shifted so that 0 is just the end of the interval with Hall's correction, the p is what is left outside: 5 %."""
    for seed in range(5):
        values = np.random.default_rng(seed).exponential(size=20)
        scores = dict(enumerate(values.tolist()))
        ends = mean_interval([{str(case): value for case, value in scores.items()}])
        assert ends
        for end in ends:
            assert mean_p({str(case): value - end for case, value in scores.items()}) == pytest.approx(0.05)
    assert mean_p({"a": 1.0}) == 1
    assert mean_p({"a": 1.0, "b": 1.0}) == 0
    assert mean_p({"a": 0.0, "b": 0.0}) == 1
