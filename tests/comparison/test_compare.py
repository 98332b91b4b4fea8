"""Comparisons of made-up scores: by hand, by symmetry, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel, wilcoxon

import maskmed_zoo as zoo
from maskmed_zoo.errors import ArgumentError, DataError, OutputError, UserError
from maskmed_zoo.evaluation.statistics.sample import SEVERAL_CASES
from tests.comparison.made import document, write

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.5, 0.9, (12, 2))


def better(by: float, seed: int = 1, noise: float = 0.02) -> np.ndarray:
    return np.clip(BASE + by + np.random.default_rng(seed).normal(0, noise, BASE.shape), 0, 1)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Files of two methods, of which the second is better."""
    return [write(tmp_path / "a.json", document(BASE)), write(tmp_path / "b.json", document(better(0.05)))]


def test_two_methods_by_hand(two: list[Path]) -> None:
    found = zoo.compare(two)
    assert [method["name"] for method in found["methods"]] == ["a", "b"]
    assert (found["labels"], len(found["cases"]), found["patients"]) == (["liver", "spleen"], 12, None)
    table = found["metrics"]["dice"]
    (row,) = table["differences"]
    own, other = BASE.mean(1), better(0.05).mean(1)
    assert row["mean"] == pytest.approx((own - other).mean())
    assert row["interval"] == pytest.approx(ttest_rel(own, other).confidence_interval(0.95))
    assert row["p"] == row["p_holm"] == pytest.approx(wilcoxon(own - other).pvalue)
    assert (row["p_methods"], row["p_methods_holm"], row["sd_over_seeds"]) == (None, None, None)
    assert (row["better"], row["worse"]) == (int((own > other).sum()), int((own < other).sum()))
    assert (row["cases"], row["patients"], row["unpaired"], row["seeds"]) == (12, 12, 0, [1, 1])
    assert [label["label"] for label in table["label_differences"]] == ["liver", "spleen"]
    liver = BASE[:, 0] - better(0.05)[:, 0]
    assert table["label_differences"][0]["mean"] == pytest.approx(liver.mean())
    p = sorted(label["p"] for label in table["label_differences"])
    assert sorted(label["p_holm"] for label in table["label_differences"]) == pytest.approx(
        [2 * p[0], max(2 * p[0], p[1])]
    )
    assert table["methods"]["b"]["all"]["mean"] == pytest.approx(other.mean())
    assert table["methods"]["b"]["labels"]["liver"]["mean"] == pytest.approx(better(0.05)[:, 0].mean())
    assert (table["ranks"]["a"]["rank"], table["ranks"]["b"]["rank"]) == (2, 1)
    (words,) = table["words"]
    assert words["follows"][0].startswith("The trained network of b is better than that of a in Dice, by 0.05")
    assert any("a and b have one run" in line for line in words["does_not_follow"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_other_way_round(two: list[Path]) -> None:
    there, back = (zoo.compare(paths)["metrics"]["dice"] for paths in (two, two[::-1]))
    for one, other in zip(
        [*there["differences"], *there["label_differences"]],
        [*back["differences"], *back["label_differences"]],
        strict=True,
    ):
        assert (one["mean"], one["p_holm"]) == pytest.approx((-other["mean"], other["p_holm"]))
        assert one["interval"] == pytest.approx([-end for end in reversed(other["interval"])])
        assert (one["better"], one["worse"]) == (other["worse"], other["better"])
    assert there["words"][0]["follows"] == back["words"][0]["follows"]
    assert there["ranks"] == back["ranks"]


def test_several_seeds_are_a_group(tmp_path: Path) -> None:
    def runs(name: str, by: float, spread: float) -> list[Path]:
        return [
            write(tmp_path / f"{name}{i}.json", document(better(by + spread * (i - 1), seed=10 + i + len(name))))
            for i in range(3)
        ]

    sure = zoo.compare({"one": runs("one", 0, 0.002), "three": runs("three", 0.1, 0.002)})["metrics"]["dice"]
    (row,) = sure["differences"]
    assert row["seeds"] == [3, 3]
    assert row["p_methods_holm"] < 0.001
    assert sure["words"][0]["follows"][0].startswith("three is better than one in Dice, by 0.09")
    assert "over other cases and other training runs" in sure["words"][0]["follows"][0]
    assert sure["methods"]["one"]["all"]["seeds"] == 3
    unsure = zoo.compare({"one": runs("one", 0, 0.08), "three": runs("three", 0.03, 0.08)})["metrics"]["dice"]
    (row,) = unsure["differences"]
    assert row["p_holm"] < 0.05 < row["p_methods_holm"]
    assert unsure["words"][0]["follows"][0].startswith("The trained networks of one and three differ in Dice over")
    limits = " ".join(unsure["words"][0]["does_not_follow"])
    assert "over cases and runs): runs of one method differ so much" in limits
    assert "smaller than the spread over seeds" in limits


def test_a_folder_of_runs_is_a_group(tmp_path: Path, two: list[Path]) -> None:
    for seed in range(2):
        write(tmp_path / "group" / f"seed{seed}" / "evaluation.json", document(better(0.05, seed=seed)))
    found = zoo.compare([tmp_path / "group", two[0]])
    assert [method["name"] for method in found["methods"]] == ["group", "a"]
    assert [len(method["runs"]) for method in found["methods"]] == [2, 1]
    assert found["metrics"]["dice"]["differences"][0]["seeds"] == [2, 1]


def test_three_methods_are_three_pairs_and_one_family(tmp_path: Path, two: list[Path]) -> None:
    third = write(tmp_path / "c.json", document(better(0.001, seed=3)))
    table = zoo.compare([*two, third])["metrics"]["dice"]
    assert [(row["first"], row["second"]) for row in table["differences"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    p = sorted(row["p"] for row in table["differences"])
    expected = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert sorted(row["p_holm"] for row in table["differences"]) == pytest.approx(np.minimum(1, expected))
    words = table["words"][1]
    assert words["follows"][0].startswith("No difference between a and c in Dice is shown")
    assert words["does_not_follow"][0].startswith("That they are equal")


def test_where_less_is_better(tmp_path: Path) -> None:
    near, far = np.full((8, 2), 2.0) + 0.1 * BASE[:8], np.full((8, 2), 5.0) + BASE[:8]
    paths = [
        write(tmp_path / f"{name}.json", document(BASE[:8], hd95=mm)) for name, mm in (("near", near), ("far", far))
    ]
    table = zoo.compare(paths, metrics=["hd95"])["metrics"]["hd95"]
    (row,) = table["differences"]
    assert row["mean"] < 0
    assert (row["better"], row["worse"]) == (8, 0)
    assert (table["ranks"]["near"]["rank"], table["ranks"]["far"]["rank"]) == (1, 2)
    assert table["words"][0]["follows"][0].startswith(
        "The trained network of near is better than that of far in HD95, by 3."
    )
    assert " mm (95 % interval over cases +3." in table["words"][0]["follows"][0].replace("+2.", "+3.")


def test_mean_and_most_cases_may_disagree(tmp_path: Path) -> None:
    other = BASE + 0.01
    other[0] = 0.0
    paths = [write(tmp_path / f"{name}.json", document(table)) for name, table in (("steady", BASE), ("wild", other))]
    (words,) = zoo.compare(paths)["metrics"]["dice"]["words"]
    (line,) = words["follows"]
    assert line.startswith("The trained networks of steady and wild differ in Dice over other cases (p = 0.03")
    assert "but not surely in the mean: steady minus wild is +0.0" in line
    assert line.endswith("steady is better in 1 case and worse in 11.")


def test_a_label_that_one_side_alone_has_a_score_of_is_counted(tmp_path: Path) -> None:
    absent, false = BASE.copy(), BASE.copy()
    absent[:3, 1], false[:3, 1] = np.nan, 0
    paths = [write(tmp_path / f"{name}.json", document(table)) for name, table in (("a", absent), ("b", false))]
    rows = zoo.compare(paths)["metrics"]["dice"]["label_differences"]
    assert [(row["cases"], row["unpaired"]) for row in rows] == [(12, 0), (9, 3)]
    nowhere = BASE.copy()
    nowhere[:, 1] = np.nan
    write(paths[0], document(nowhere))
    (_, row) = zoo.compare(paths)["metrics"]["dice"]["label_differences"]
    assert (row["mean"], row["p"], row["p_holm"], row["cases"], row["unpaired"]) == (None, None, None, 0, 12)


def test_patients_are_counted_where_they_are_known(tmp_path: Path) -> None:
    patients = [f"p{i // 2}" for i in range(12)]
    paths = [
        write(tmp_path / f"{name}.json", document(table, patients=patients))
        for name, table in (("a", BASE), ("b", better(0.05)))
    ]
    found = zoo.compare(paths)
    (row,) = found["metrics"]["dice"]["differences"]
    assert (found["patients"], row["cases"], row["patients"]) == (6, 12, 6)
    differences = (BASE.mean(1) - better(0.05).mean(1)).reshape(6, 2).mean(1)
    assert row["p"] == pytest.approx(wilcoxon(differences).pvalue)
    assert row["interval_warning"] == SEVERAL_CASES
    assert found["notes"].count(SEVERAL_CASES) == 1
    assert "simulations" not in " ".join(found["notes"]), "which had one case of each patient"
    (words,) = found["metrics"]["dice"]["words"]
    assert "95 % interval over patients" in words["follows"][0]
    assert "cases" not in words["follows"][0]


def test_what_holds_for_all_is_noted_once(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{name}.json", document(better(by, seed), hd95=10 * better(by, seed)))
        for name, by, seed in (("a", 0, 1), ("b", 0.05, 2), ("c", 0.02, 3))
    ]
    notes = zoo.compare(paths)["notes"]
    assert len(set(notes)) == len(notes)
    assert sum("three equal methods" in note for note in notes) == 1
    assert sum(note.startswith("Intervals of means: With 12 cases") for note in notes) == 1


def test_every_number_of_a_method_is_over_the_cases_that_all_its_runs_have_scores_of(tmp_path: Path) -> None:
    holes = BASE.copy()
    holes[3] = np.nan
    runs = [write(tmp_path / f"{name}.json", document(table)) for name, table in (("a", BASE), ("b", holes))]
    other = write(tmp_path / "c.json", document(better(0.1)))
    table = zoo.compare({"two": runs, "one": other})["metrics"]["dice"]
    found, (row,) = table["methods"]["two"]["all"], table["differences"]
    assert found["mean"] == pytest.approx(np.delete(BASE, 3, 0).mean())
    assert (found["cases"], found["unpaired"], row["unpaired"]) == (11, 1, 1)


def test_a_metric_of_another_version_is_left_out(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{name}.json", document(table, hd95=10 * table))
        for name, table in (("a", BASE), ("b", better(0.05)))
    ]
    for path in paths:
        content = json.loads(path.read_text())
        content["metrics"]["dice_of_tomorrow"] = content["metrics"]["hd95"]
        write(path, content)
    assert list(zoo.compare(paths)["metrics"]) == ["dice", "hd95"]


HD95: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "case gone": (lambda d: d["cases"].pop(), "'hd95' is of other cases or labels than 'dice'; evaluate again"),
    "label gone": (lambda d: [case["hd95"].pop("liver") for case in d["cases"]], "'hd95' is of other cases or labels"),
    "huge": (lambda d: d["cases"][0]["hd95"].update(liver=1e200), "no scores as 'evaluate' of this version"),
    "below 0": (lambda d: d["cases"][0]["hd95"].update(liver=-1.0), "no scores as 'evaluate' of this version"),
    "other unit": (lambda d: d.update(unit="cm"), "no scores as 'evaluate' of this version"),
    "other direction": (lambda d: d.update(higher_is_better=True), "no scores as 'evaluate' of this version"),
}


@pytest.mark.parametrize("change", HD95)
def test_tables_that_do_not_belong_to_dice_are_one_line(tmp_path: Path, change: str) -> None:
    paths = [write(tmp_path / f"{name}.json", document(BASE, hd95=10 * BASE)) for name in "ab"]
    edit, words = HD95[change]
    content = json.loads(paths[1].read_text())
    edit(content["metrics"]["hd95"])
    write(paths[1], content)
    with pytest.raises(DataError, match=words):
        zoo.compare(paths)


def test_patients_that_contradict_each_other(tmp_path: Path) -> None:
    known = [[f"p{i // 2}" for i in range(12)], [f"q{i // 2}" for i in range(12)]]
    paths = [
        write(tmp_path / f"{name}.json", document(BASE, patients=patients))
        for name, patients in (("a", None), ("b", known[0]), ("c", known[1]))
    ]
    with pytest.raises(DataError, match=r"another patient in cases 'case_00'.*; score both with the same groups\.json"):
        zoo.compare(paths)
    assert zoo.compare(paths[:2])["patients"] == 6


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "case gone": (lambda d: d["cases"].pop(), r"b\.json: lacks case 'case_11' of .*a\.json; compare .* same cases"),
    "case more": (lambda d: d["cases"].append({**d["cases"][0], "case": "x"}), r"a\.json: lacks case 'x' of .*b\.json"),
    "other label": (
        lambda d: [case["dice"].update(tumour=case["dice"].pop("spleen")) for case in d["cases"]],
        r"no scores of label 'spleen' of .*a\.json; score the same labels",
    ),
    "other reference": (
        lambda d: d["cases"][2].update(reference="other"),
        r"b\.json and .*a\.json: another reference in case 'case_02'; score both against the same references",
    ),
    "other annotated": (
        lambda d: d["cases"][2].update(unannotated=["liver"]),
        r"another set of annotated labels in case 'case_02'",
    ),
    "other rules": (lambda d: d.update(rules="x"), r"'dice' is defined otherwise"),
    "case twice": (lambda d: d["cases"].append(d["cases"][0]), "no scores as 'evaluate' of this version writes them"),
    "no cases": (lambda d: d.update(cases=[]), "no cases or no labels are scored"),
    "text": (lambda d: d["cases"][0]["dice"].update(liver="0.5"), "no scores as 'evaluate' of this version"),
    "switch": (lambda d: d["cases"][0].update(mean=True), "no scores as 'evaluate' of this version"),
    "earlier version": (
        lambda d: d.pop("rules"),
        "no scores as 'evaluate' of this version writes them; evaluate again",
    ),
    "label gone": (lambda d: d["cases"][0]["dice"].pop("liver"), "no scores as 'evaluate' of this version"),
    "Dice below 0": (lambda d: d["cases"][0]["dice"].update(liver=-3.0), "no scores as 'evaluate' of this version"),
    "mean above 1": (lambda d: d["cases"][0].update(mean=7.0), "no scores as 'evaluate' of this version"),
    "unpredicted of no case": (lambda d: d.update(unpredicted=["x"]), "no scores as 'evaluate' of this version"),
    "missed is text": (lambda d: d["cases"][0].update(missed="x"), "no scores as 'evaluate' of this version"),
    "metrics are text": (lambda d: d.update(metrics="x"), "no scores as 'evaluate' of this version"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_compared_is_one_line(two: list[Path], change: str) -> None:
    edit, words = CHANGES[change]
    content = copy.deepcopy(json.loads(two[1].read_text()))
    edit(content)
    write(two[1], content)
    with pytest.raises(DataError, match=words) as caught:
        zoo.compare(two)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "null", '{"cases": NaN}', "\0", "[" * 1000, '{"cases": {}}'])
def test_files_that_are_no_scores_are_one_line(two: list[Path], content: str) -> None:
    two[1].write_text(content)
    with pytest.raises(DataError) as caught:
        zoo.compare(two)
    assert str(caught.value).startswith(str(two[1]))
    assert "\n" not in str(caught.value)


def test_paths_and_names_that_do_not_go_together(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "new run").mkdir()
    (tmp_path / "new run" / "recipe.yaml").touch()
    cases: list[tuple[Any, dict[str, Any], type[UserError], str]] = [
        (two[:1], {}, ArgumentError, "give two methods or more"),
        ({"a": two[0], "b": []}, {}, ArgumentError, "'b' names no path"),
        ([two[0], two[0]], {}, ArgumentError, "two are called 'a'"),
        ({"a": [two[0], two[0]], "b": two[1]}, {}, DataError, "the same run as .*, twice in 'a'"),
        ([*two, tmp_path / "nowhere"], {}, DataError, "nowhere"),
        ([*two, tmp_path / "empty"], {}, DataError, "no run, no folder of runs and no label maps"),
        ([*two, tmp_path / "new run"], {}, DataError, "not scored yet; 'maskmed-zoo evaluate"),
        (two, {"metrics": ["hd95"]}, DataError, "no scores of 'hd95', only of dice; evaluate again"),
        (two, {"metrics": ["hd59"]}, ArgumentError, "no metric 'hd59'; did you mean 'hd95'"),
        (two, {"ref": tmp_path}, DataError, "scores are no label maps, which --ref scores"),
        (two, {"metric_settings": {}}, ArgumentError, "belong to ref"),
        (two, {"labels": {"liver": 1}}, ArgumentError, "belong to ref"),
        ("ab", {}, ArgumentError, "methods: expected"),
        (3, {}, ArgumentError, "methods: expected"),
        ({1: two[0], 2: two[1]}, {}, ArgumentError, "methods: expected names"),
    ]  # fmt: skip
    for methods, keywords, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            zoo.compare(methods, **keywords)
        assert "\n" not in str(caught.value)


def test_weights_that_count_twice(two: list[Path]) -> None:
    for path in two:
        write(path, json.loads(path.read_text()) | {"weights_sha256": "x"})
    with pytest.raises(DataError, match=r"the same run as .*, twice in 'mine'; seeds are different runs"):
        zoo.compare({"mine": two, "other": two[0]})
    assert len(zoo.compare({"mine": two[0], "other": two[1]})["methods"]) == 2


def test_scores_that_do_not_tell_their_references(two: list[Path]) -> None:
    content = json.loads(two[1].read_text())
    for case in content["cases"]:
        del case["reference"]
    write(two[1], content)
    assert zoo.compare(two)["references_checked"] is False


def test_files_of_others_stay(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        zoo.compare(two, out=out)
    assert sorted(path.name for path in out.iterdir()) == [f"compare.{end}" for end in ("json", "md", "png", "tex")]
    (out / "compare.json").write_text("{}")
    with pytest.raises(OutputError, match=r"compare\.md: exists and is of no comparison"):
        zoo.compare(two, out=out)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "compare.md").write_text("mine")
    with pytest.raises(OutputError):
        zoo.compare(two, out=tmp_path / "notes")
    assert (tmp_path / "notes" / "compare.md").read_text() == "mine"
