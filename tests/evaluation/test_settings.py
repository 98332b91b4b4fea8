"""Settings of metrics: from a file, a mapping, a recipe; what is refused; and that scores say which they had."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.errors import ArgumentError, DataError, RecipeError
from maskmed_zoo.evaluation.metrics import metrics
from maskmed_zoo.evaluation.settings import metric_settings
from maskmed_zoo.evaluation.table import tables
from maskmed_zoo.metric_settings import MetricSettings
from maskmed_zoo.runner.display import PlainConsole
from tests.conftest import make_dataset, write_nifti


def test_a_file_a_mapping_or_an_object(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("tolerance:\n  left: 1.5\n  right: 3\nboundary_width: 1\n", encoding="utf-8")
    found = metric_settings(file)
    assert found == metric_settings(str(file)) == metric_settings(found)
    assert found == metric_settings({"tolerance": {"left": 1.5, "right": 3}, "boundary_width": 1})
    assert [found.tolerance_of(name) for name in ("left", "right", "other")] == [1.5, 3, 2]
    assert MetricSettings().tolerance_of("left") == 2
    assert metric_settings({"tolerance": 0}).tolerance_of("left") == 0
    section = tmp_path / "section.yaml"
    section.write_text("evaluation:\n" + "".join(f"  {line}\n" for line in file.read_text().splitlines()))
    assert metric_settings(section) == metric_settings({"evaluation": found.model_dump()}) == found, "as in a recipe"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tolerence: 3", r"s\.yaml:1:1: tolerence: unknown key; did you mean 'tolerance'"),
        ("evaluation:\n  tolerence: 3", r"s\.yaml:2:3: tolerence: unknown key; did you mean 'tolerance'"),
        ("evaluation: 3", r"s\.yaml:1:1: evaluation: unknown key"),
        ("boundary_width: 1\ntolerance: -1", r"s\.yaml:2:1: tolerance: .*greater than or equal to 0, got -1$"),
        ("tolerance: true", r"s\.yaml:.*'tolerance' takes neither true nor false"),
        ("tolerance: {liver: true}", r"s\.yaml:1:1: tolerance: [^;]*number, got True$"),
        ("tolerance: {liver: wide}", r"s\.yaml:1:1: tolerance: [^;]*number, got 'wide'$"),
        ("brats_dilation: '3'", r"s\.yaml:1:1: brats_dilation: .*integer, got '3'$"),
        ("calibration_bins: '3'", r"s\.yaml:1:1: calibration_bins: .*integer, got '3'$"),
        ("", r"s\.yaml:1:1: settings of metrics are a mapping"),
        ("- 1", r"s\.yaml:1:1: settings of metrics are a mapping"),
        ("tolerance: {a: 1, a: 2}", "duplicate key 'a'"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        metric_settings(file)


def test_settings_that_are_no_settings() -> None:
    with pytest.raises(ArgumentError, match="metric_settings: expected a YAML file, or its content, got 3"):
        zoo.evaluate(pred="a", ref="b", metric_settings=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match=r"no\.yaml"):
        zoo.evaluate(pred="a", ref="b", metric_settings="no.yaml")
    with pytest.raises(RecipeError, match="metric settings:1:1: width: unknown key"):
        zoo.evaluate(pred="a", ref="b", metric_settings={"width": 3})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases of two boxes: in the first one box is missed and the other moved by 3 mm."""
    reference = np.zeros((12, 12, 8), np.uint8)
    reference[1:5, 2:9, 2:6], reference[7:11, 2:9, 2:6] = 1, 2
    moved = np.where(reference == 1, 1, 0).astype(np.uint8)
    moved = np.roll(moved, 3, 1)
    for name, prediction in (("a", moved), ("b", reference)):
        write_nifti(tmp_path / "data" / "labelsTr" / f"{name}.nii.gz", reference, np.eye(4))
        write_nifti(tmp_path / "pred" / f"{name}.nii.gz", prediction, np.eye(4))
    (tmp_path / "data" / "dataset.json").write_text('{"labels": {"background": 0, "left": 1, "right": 2}}')
    return tmp_path / "pred", tmp_path / "data" / "labelsTr"


def test_scores_of_folders_say_which_settings_they_had(folders, tmp_path: Path) -> None:
    pred, ref = folders
    strict, loose = (
        zoo.evaluate(pred=pred, ref=ref, metrics=["nsd"], metric_settings={"tolerance": mm})["metrics"]["nsd"]
        for mm in (0.5, 3.0)
    )
    assert strict["labels"]["left"]["mean"] < loose["labels"]["left"]["mean"] == 1
    assert "the tolerance is 0.5 mm" in strict["rules"]
    assert "the tolerance is 0.5 mm" in strict["definition"]
    with pytest.raises(DataError, match="'tolerance' names 'lefd', which is no label to score; did you mean 'left'"):
        zoo.evaluate(pred=pred, ref=ref, metric_settings={"tolerance": {"lefd": 1.0}})
    with pytest.raises(DataError, match=r"'tolerance' names 'background'.*\(labels: left, right\)"):
        zoo.evaluate(pred=pred, ref=ref, metric_settings={"tolerance": {"background": 1.0}})


def test_missed_labels_are_counted_and_have_the_worst_value(folders) -> None:
    pred, ref = folders
    summary = zoo.evaluate(pred=pred, ref=ref, metrics=["hd95"])
    assert zoo.evaluate(pred=pred, ref=ref, metrics="hd95") == summary, "a name alone"
    diagonal = float(np.linalg.norm([12, 12, 8]))
    right = {
        "mean": 0.5, "std": pytest.approx(0.5**0.5), "n": 2, "absent": 0, "missed": 1, "false": 0, "unannotated": 0
    }  # fmt: skip
    assert summary["labels"]["right"].items() >= right.items()
    found = summary["metrics"]["hd95"]
    assert found["cases"][0]["hd95"] == {"left": 3, "right": pytest.approx(diagonal)}
    assert found["mean_hd95"] == pytest.approx((3 + diagonal) / 4)
    assert (found["missed"], found["false"]) == (1, 0)
    swapped = zoo.evaluate(pred=ref, ref=pred, labels={"background": 0, "left": 1, "right": 2})
    assert (swapped["missed"], swapped["false"], swapped["labels"]["right"]["false"]) == (0, 1, 1)


def test_the_command_prints_the_rules_under_every_table(folders, tmp_path: Path, capsys) -> None:
    pred, ref = folders
    settings = tmp_path / "settings.yaml"
    settings.write_text("tolerance: {right: 1}", encoding="utf-8")
    words = ["evaluate", "--pred", str(pred), "--ref", str(ref), "--json", str(tmp_path / "scores.json")]
    assert main([*words, "--metrics", "nsd,hd", "--metric-settings", str(settings)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    scores = json.loads((tmp_path / "scores.json").read_text())
    for name in ("dice", "nsd", "hd"):
        assert metrics()[name].meaning(metric_settings(settings)) in printed
        rules = (scores if name == "dice" else scores["metrics"][name])["rules"]
        assert rules == f"{metrics()[name].meaning(metric_settings(settings))} {metrics()[name].absence}"
    assert printed.count("A label absent in reference and prediction") == 2, "of shares together, and of distances"
    assert f"Dice, NSD: {metrics()['nsd'].absence}" in printed
    assert "the tolerance is 1 mm for right, 2 mm for any other" in printed
    assert "gets the image's diagonal" in printed
    settings.write_text("tolerance: {right: 1, left: 2.5}", encoding="utf-8")
    assert main([*words, "--metrics", "nsd", "--metric-settings", str(settings)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the tolerance is 1 mm for right, 2.5 mm for left." in printed, "and there is no other label"
    settings.write_text("tolerance: {wrong: 1}", encoding="utf-8")
    assert main([*words, "--metric-settings", str(settings)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_tables_fit_a_terminal(folders) -> None:
    pred, ref = folders
    console = PlainConsole(file=io.StringIO(), width=80)
    for part in tables(zoo.evaluate(pred=pred, ref=ref, metrics=["hd", "relative_volume_difference"])):
        console.print(part, highlight=False)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    shown = [line.replace("│", " ").replace("┃", " ").split() for line in lines]
    assert ["label", "mean", "sd", "n", "absent", "missed"] in shown
    assert ["right", "0.5000", "0.7071", "2", "0", "1"] in shown
    assert ["mean", "over", "cases", "0.6429", "2", "0", "1"] in shown


def test_a_recipe_may_hold_them(tiny_recipe: Path, tmp_path: Path) -> None:
    plain = zoo.load_recipe(tiny_recipe)
    assert plain.evaluation == MetricSettings()
    assert zoo.load_recipe(tiny_recipe, evaluation__tolerance=2.0) == plain
    assert zoo.load_recipe(tiny_recipe, evaluation__tolerance={"left": 1}).evaluation.tolerance_of("left") == 1
    with pytest.raises(RecipeError, match=r"evaluation: 'tolerance' names 'lefd'.*did you mean 'left'"):
        zoo.load_recipe(tiny_recipe, evaluation__tolerance={"lefd": 1})
    open_labels = zoo.load_recipe(tiny_recipe, data__labels=None, evaluation__tolerance={"lefd": 1})
    with pytest.raises(DataError, match=r"dataset\.json: the recipe's evaluation: 'tolerance' names 'lefd'"):
        bind(open_labels, open_dataset(make_dataset(tmp_path / "data")))


def test_a_run_has_those_of_its_recipe(tiny_recipe: Path, tmp_path: Path) -> None:
    run = zoo.train(tiny_recipe, data=make_dataset(tmp_path / "data"), out=tmp_path / "run", device="cpu",
                    train__epochs=1, train__iterations_per_epoch=1, evaluation__tolerance=5.0)  # fmt: skip
    own = zoo.evaluate(run, metrics=["nsd"], device="cpu")
    other = zoo.evaluate(run, metrics=["nsd"], device="cpu", metric_settings={"tolerance": 1.0})
    assert "the tolerance is 5 mm" in own["metrics"]["nsd"]["rules"]
    assert "the tolerance is 1 mm" in other["metrics"]["nsd"]["rules"]
    with pytest.raises(DataError, match="'tolerance' names 'liver'"):
        zoo.evaluate(run, device="cpu", metric_settings={"tolerance": {"liver": 1.0}})
