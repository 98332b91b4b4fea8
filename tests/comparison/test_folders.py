"""Folders of label maps and of runs, whoever made them: scored on the same references, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.comparison.costs import costs_of
from maskmed_zoo.comparison.methods import References, read_methods
from maskmed_zoo.errors import DataError, UserError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.metrics_file import write_rows
from maskmed_zoo.runner.resources import RESOURCES
from maskmed_zoo.runner.run_folder import RunFolder
from tests.comparison.made import LABELS, document, write

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def boxes(shift: int, missed: bool = False) -> np.ndarray:
    array = np.zeros((12, 10, 6), np.uint8)
    array[2 + shift : 6 + shift, 2:6, 1:5] = 1
    if not missed:
        array[8:11, 2:6, 1:5] = 2
    return array


@pytest.fixture
def ref(tmp_path: Path) -> Path:
    """References of six cases with their names of labels, and three tools' label maps beside them."""
    folder = tmp_path / "labelsTr"
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}}))
    for index in range(6):
        save(folder / f"case{index}.nii.gz", boxes(0))
        save(tmp_path / "good" / f"case{index}.nii.gz", boxes(index % 2))
        save(tmp_path / "bad" / f"case{index}.nii.gz", boxes(1 + index % 2, missed=index == 3))
    return folder


def test_label_maps_of_any_tool(ref: Path, tmp_path: Path) -> None:
    found = zoo.compare([tmp_path / "good", tmp_path / "bad"], ref=ref, metrics=["hd95"])
    table = found["metrics"]["dice"]
    alone = {name: evaluate_folders(tmp_path / name, ref) for name in ("good", "bad")}
    for name, summary in alone.items():
        assert table["methods"][name]["all"]["mean"] == pytest.approx(summary["mean_dice"])
    (row,) = table["differences"]
    assert row["mean"] == pytest.approx(alone["good"]["mean_dice"] - alone["bad"]["mean_dice"])
    assert list(found["metrics"]) == ["dice", "hd95"]
    assert found["methods"][0]["costs"] == dict.fromkeys(found["methods"][0]["costs"])
    with pytest.raises(DataError, match="label maps are scored against references; say with --ref"):
        zoo.compare([tmp_path / "good", tmp_path / "bad"])


def test_patients_beside_the_references(ref: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text(json.dumps({f"case{i}": f"p{i // 2}" for i in range(6)}))
    assert zoo.compare([tmp_path / "good", tmp_path / "bad"], ref=ref)["patients"] == 3
    (tmp_path / "groups.json").write_text(json.dumps({f"case{i}": "p" for i in range(5)}))
    with pytest.raises(DataError, match=r"groups\.json: case 'case5' is not listed"):
        zoo.compare([tmp_path / "good", tmp_path / "bad"], ref=ref)


def test_missing_predictions_are_missed_or_refused(ref: Path, tmp_path: Path) -> None:
    (tmp_path / "good" / "case4.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no prediction for case4\.nii\.gz of the 6 cases .*--missing-as-missed"):
        zoo.compare([tmp_path / "good", tmp_path / "bad"], ref=ref)
    summary = evaluate_folders(tmp_path / "good", ref, missing_as_missed=True)
    assert (summary["unpredicted"], summary["missed"]) == (["case4"], 2)
    assert summary["cases"][4]["dice"] == {"liver": 0, "spleen": 0}
    found = zoo.compare([tmp_path / "good", tmp_path / "bad"], ref=ref, metrics=["hd95"], missing_as_missed=True)
    assert found["metrics"]["dice"]["methods"]["good"]["all"]["mean"] == pytest.approx(summary["mean_dice"])
    diagonal = float(np.linalg.norm([12, 10, 12]))
    hd95 = evaluate_folders(tmp_path / "good", ref, metrics=["hd95"], missing_as_missed=True)["metrics"]["hd95"]
    assert hd95["cases"][4]["hd95"] == pytest.approx({"liver": diagonal, "spleen": diagonal})
    for index in (0, 1, 2, 3, 5):
        (tmp_path / "good" / f"case{index}.nii.gz").unlink()
    with pytest.raises(DataError, match="no prediction for case0"):
        evaluate_folders(tmp_path / "good", ref, missing_as_missed=True)


def test_missed_labels_and_cases_without_a_prediction_are_told_everywhere(
    ref: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of label maps, of files of scores and of runs' folders alike."""
    (tmp_path / "bad" / "case4.nii.gz").unlink()
    scores = tmp_path / "bad.json"
    words = ["evaluate", "--pred", str(tmp_path / "bad"), "--ref", str(ref), "--missing-as-missed", "--metrics", "hd95"]
    assert main([*words, "--json", str(scores)]) == 0
    good = evaluate_folders(tmp_path / "good", ref, metrics=["hd95"])
    write(tmp_path / "good.json", good)
    write(tmp_path / "run" / "evaluation.json", json.loads(scores.read_text()))
    for second in (scores, tmp_path / "run"):
        with pytest.raises(
            DataError, match=r"scored without a prediction of case 'case4', as missed.*--missing-as-mis"
        ):
            zoo.compare({"good": tmp_path / "good.json", "bad": second})
    given: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"good": tmp_path / "good", "bad": tmp_path / "bad"}, {"ref": ref, "metrics": ["hd95"]}),
        ({"good": tmp_path / "good.json", "bad": scores}, {}),
        ({"good": tmp_path / "good.json", "bad": tmp_path / "run"}, {}),
    ]
    capsys.readouterr()
    for methods, how in given:
        out = tmp_path / "out"
        found = zoo.compare(methods, missing_as_missed=True, out=out, **how)
        assert [method["unpredicted"] for method in found["methods"]] == [[], ["case4"]]
        for name in ("dice", "hd95"):
            counts = found["metrics"][name]["methods"]["bad"]
            told = {"missed": 3, "false": 0, "unpredicted": 1, "missed_unpredicted": 2}
            assert counts["all"].items() >= told.items(), "two boxes of case4, one of case3"
            assert counts["labels"]["spleen"]["missed"] == 2
            assert found["metrics"][name]["methods"]["good"]["all"]["missed"] == 0
            line = "its mean counts 1 case without a prediction (2 missed labels) and 1 other missed label as"
            assert line in " ".join(found["metrics"][name]["words"][0]["does_not_follow"])
        page, tex = ((out / f"compare.{end}").read_text(encoding="utf-8") for end in ("md", "tex"))
        assert page.count("| kept in | missed | no prediction |") == 2
        assert page.count("| SD of runs | missed |") == 2
        assert tex.count(r"kept in & missed & no prediction \\") == 2
    assert main(["compare", str(tmp_path / "good.json"), str(scores), "--missing-as-missed"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "its mean counts 1 case without a prediction (2 missed labels)" in printed
    assert main(["compare", str(tmp_path / "good.json"), str(scores)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.json: scored without a prediction of case 'case4'" in line


def test_counts_are_summed_over_runs(ref: Path, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        write(tmp_path / f"{name}.json", evaluate_folders(tmp_path / name, ref))
    other = write(tmp_path / "other.json", evaluate_folders(ref, ref))
    found = zoo.compare({"two": [tmp_path / "good.json", tmp_path / "bad.json"], "ref": other})
    counts = found["metrics"]["dice"]["methods"]["two"]["all"]
    assert (counts["missed"], counts["false"], counts["unpredicted"]) == (1, 0, 0)


def rgb(path: Path) -> None:
    colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(path, np.zeros((12, 10, 6), colour))


BROKEN: dict[str, Any] = {
    "other grid": lambda path: save(path, boxes(0)[:, :, :5].copy()),
    "other spacing": lambda path: save(path, boxes(0), np.diag([1.0, 1.0, 3.0, 1.0])),
    "other label": lambda path: save(path, boxes(0) + np.uint8(2)),
    "rgb": rgb,
    "floats": lambda path: save(path, boxes(0).astype(np.float32) + 0.5),
    "nan": lambda path: save(path, np.where(boxes(0) > 0, np.nan, 0).astype(np.float32)),
    "four dimensions": lambda path: save(path, np.stack([boxes(0)] * 2, axis=-1)),
    "no image": lambda path: path.write_bytes(b"nothing"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_label_maps_are_one_line(ref: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    BROKEN[kind](tmp_path / "bad" / "case2.nii.gz")
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "good"), str(tmp_path / "bad"), "--ref", str(ref), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert "case2.nii.gz" in line
    assert not printed.out
    assert not out.exists(), "nothing half-written"


def test_a_hostile_case_name_is_escaped(ref: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\n| \\x[red]$%&#<b>\x1b[31m"
    for folder in (ref, tmp_path / "good", tmp_path / "bad"):
        (folder / "case2.nii.gz").rename(folder / f"{name}.nii.gz")
    words = ["evaluate", "--pred", str(tmp_path / "bad"), "--ref", str(ref), "--csv", str(tmp_path / "cases.csv")]
    assert main(words) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert len((tmp_path / "cases.csv").read_text().splitlines()) == 13
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "good"), str(tmp_path / "bad"), "--ref", str(ref), "--out", str(out)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    (tmp_path / "bad" / f"{name}.nii.gz").unlink()
    assert main(["compare", str(tmp_path / "good"), str(tmp_path / "bad"), "--ref", str(ref)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


def test_surplus_predictions_are_told_and_files_of_others_stay(
    ref: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "good" / "surplus.nii.gz", boxes(0))
    assert zoo.compare([tmp_path / "good", tmp_path / "bad"], ref=ref)["cases"] == [f"case{i}" for i in range(6)]
    (tmp_path / "notes.csv").write_text("mine")
    words = ["evaluate", "--pred", str(tmp_path / "good"), "--ref", str(ref), "--csv"]
    assert main([*words, str(tmp_path / "notes.csv")]) == 2
    assert "exists and holds no scores of cases" in capsys.readouterr().err
    assert (tmp_path / "notes.csv").read_text() == "mine"
    for _ in range(2):
        assert main([*words, str(tmp_path / "cases.csv")]) == 0
        assert "left out, without a reference" in capsys.readouterr().err
    (tmp_path / "good" / "case0.nii.gz").unlink()
    assert main([*words, str(tmp_path / "cases.csv"), "--missing-as-missed"]) == 0
    assert "counted as missed, without a prediction" in capsys.readouterr().err


def test_runs_are_scored_by_their_label_maps_where_there_are_references(ref: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "good").rename(tmp_path / "predictions")
    run.mkdir()
    (tmp_path / "predictions").rename(run / "predictions")
    (run / "recipe.yaml").touch()
    with pytest.raises(DataError, match="not scored yet"):
        zoo.compare([run, tmp_path / "bad"])
    methods = read_methods({"run": [run], "bad": [tmp_path / "bad"]}, [], References(ref))
    assert methods[0].runs[0].folder == run
    assert methods[0].runs[0].scores.place == str(run / "predictions")
    assert methods[1].runs[0].folder is None
    write(run / "evaluation.json", document(np.full((6, 2), 0.5), labels=LABELS) | {"seconds_per_case": 1.5})
    methods = read_methods({"run": [run], "bad": [tmp_path / "bad"]}, [], References(ref))
    assert methods[0].runs[0].facts["seconds_per_case"] == 1.5, "of its own files, whoever scores it"
    with pytest.raises(DataError, match="mistyped: is not there"):
        zoo.compare([run, tmp_path / "mistyped"], ref=ref)


def test_costs_are_those_the_folder_of_a_run_tells(tiny_recipe: Path, tmp_path: Path) -> None:
    def made(name: str, seconds: float, **facts: Any) -> Path:
        run = RunFolder(tmp_path / name)
        recipe = load_recipe(tiny_recipe)
        run.write_recipe(recipe)
        write(run.evaluation_file, document(np.full((6, 2), 0.5), labels=LABELS) | facts)
        rows = [{"epoch": e, "iterations": 3 * (e + 1), "loss": 1.0, "seconds": seconds} for e in range(2)]
        write_rows(rows, run.metrics_file)
        return run.path

    one, other = made("one", 2.0, seconds_per_case=1.5), made("other", 4.0, seconds_per_case=2.5)
    third = made("third", 1.0)
    write(one / RESOURCES, {"peak_memory_bytes": 7, "memory": "resident"})
    (first, _), (second, _) = (
        read_methods({"method": paths, "third": [third]}, [], References()) for paths in ([one], [one, other])
    )
    costs = costs_of(first.runs)
    assert (costs["parameters"] or 0) > 1000
    assert (costs["macs"] or 0) > 1000
    del costs["parameters"], costs["macs"]
    assert costs == {
        "seconds_per_case": 1.5, "peak_memory_bytes": 7, "memory": "resident", "training_seconds": 4.0
    }  # fmt: skip
    write(other / RESOURCES, {"peak_memory_bytes": 9, "memory": "cuda"})
    assert costs_of(second.runs)["peak_memory_bytes"] is None, "of different memory"
    (other / RESOURCES).unlink()
    costs = costs_of(second.runs)
    assert (costs["seconds_per_case"], costs["training_seconds"]) == (2.0, 6.0)
    assert costs["peak_memory_bytes"] is None, "the second run does not tell"
    (one / "metrics.csv").unlink()
    (one / RESOURCES).write_text("[]")
    costs = costs_of(first.runs)
    assert (costs["training_seconds"], costs["peak_memory_bytes"]) == (None, None)
    (one / "recipe.yaml").write_text("name: [")
    assert costs_of(first.runs)["parameters"] is None


def test_runs_of_a_method_differ_by_their_seed_alone(tiny_recipe: Path, tmp_path: Path) -> None:
    def made(name: str, *, epochs: int = 2, **facts: Any) -> Path:
        run = RunFolder(tmp_path / name)
        recipe = load_recipe(tiny_recipe)
        seed = facts.get("seed", 0)
        run.write_recipe(
            recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed, "epochs": epochs})})
        )
        write(run.evaluation_file, document(np.full((6, 2), 0.5), labels=LABELS) | facts)
        return run.path

    facts = {"recipe": "tiny", "dataset": "d", "fold": 0, "weights": "last"}
    one, two, third = made("one", seed=0, **facts), made("two", seed=1, **facts), made("third", seed=0)
    assert len(zoo.compare({"both": [one, two], "third": third})["methods"][0]["runs"]) == 2
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seed": 0}, "other: seed 0, as .*one; runs of 'both' need seeds of their own"),
        ({"seed": 2, "epochs": 3}, "other: another recipe than .*one; runs of 'both' may differ by their seed alone"),
        ({"seed": 2, "fold": 1}, "other: another fold than"),
        ({"seed": 2, "dataset": "e"}, "other: another data set than"),
    ]
    for change, words in cases:
        with pytest.raises(DataError, match=words):
            zoo.compare({"both": [one, made("other", **(facts | change))], "third": third})
    with pytest.raises(DataError, match="third: in 'both' and in 'third'; give every run to one method"):
        zoo.compare({"both": [third], "third": third})
    with pytest.raises(DataError, match="in 'both' and in 'scores'; give every run to one method"):
        zoo.compare({"both": [third], "scores": third / "evaluation.json"})


def test_a_folder_that_is_none_of_all_that(ref: Path, tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "card.json").write_text("{}")
    with pytest.raises(UserError, match="no run, no folder of runs and no label maps"):
        zoo.compare([tmp_path / "good", tmp_path / "exported"], ref=ref)
