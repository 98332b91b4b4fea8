"""The commands that need no data: their output, as text and as JSON, and the frozen set of verbs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import VERBS, main
from maskmed_zoo.cli.output import write_new
from maskmed_zoo.errors import OutputError
from maskmed_zoo.evaluation.metrics import metrics


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_verbs_are_frozen() -> None:
    assert list(VERBS) == [
        "list",
        "describe",
        "validate",
        "schema",
        "copy",
        "plan",
        "build",
        "data",
        "train",
        "predict",
        "evaluate",
        "postprocess",
        "compare",
        "explain",
        "ablate",
        "export",
        "pull",
        "push",
        "nnunet",
        "demo",
    ]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",)):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(verb in text for verb in VERBS)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert zoo.__version__ in capsys.readouterr().out
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0


def test_help_names_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("evaluate", "compare"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert ", ".join(sorted(metrics())) in text
    page = (Path(zoo.__file__).parents[1] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in metrics() if f"`{name}`" not in page] == []


def test_names_of_metrics(capsys: pytest.CaptureFixture[str], dataset: Path) -> None:
    words = ["evaluate", "--pred", str(dataset / "labelsTr"), "--ref", str(dataset / "labelsTr"), "--metrics"]
    assert "HD95, mm" in output(capsys, *words, "iou, hd95")
    assert main([*words, "HD95"]) == 2
    assert "no metric 'HD95'; did you mean 'hd95'?" in capsys.readouterr().err


def test_list_and_describe(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(output(capsys, "list", "*_btcv", "--json"))
    assert [row["name"] for row in rows] == ["maskmed_btcv", "pointwise_btcv"]
    assert all(name in output(capsys, "list") for name in zoo.list())
    assert "nothing matches" in output(capsys, "list", "zzz")
    assert json.loads(output(capsys, "describe", "fsad", "--json")) == zoo.describe("fsad")
    assert "App. B" in output(capsys, "describe", "fsad")


def test_build_of_the_papers_model(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(output(capsys, "build", "maskmed_amos", "--json"))
    assert facts["num_classes"] == facts["num_queries"] == 16
    assert [level["channels"] for level in facts["levels"]] == [32, 64, 128, 256, 320, 320]
    assert [stage["weight"] for stage in facts["stages"]] == pytest.approx([16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31])
    assert sum(facts["parameter_groups"].values()) == facts["total_parameters"] == sum(facts["parameters"].values())
    assert all(count > 0 for count in facts["parameter_groups"].values())
    text = output(capsys, "build", "maskmed_amos")
    assert "16 queries" in text
    assert f"{facts['total_parameters']:,}" in text


def test_build_takes_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("build", "maskmed_amos", "--json", "--set", "model.neck.kind=skip", "--set", "model.head.num_queries=32")
    facts = json.loads(output(capsys, *words))
    assert facts["components"]["neck"] == "skip"
    assert facts["num_queries"] == 32


def test_macs_of_a_convolution_are_exact(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_recipe: Path) -> None:
    """Against the sum over layers written out: kernel x in x out x voxels."""
    words = ("--set", "model.neck.kind=skip", "--set", "model.head.kind=pointwise", "--set", "model.loss.kind=ce_dice")
    facts = json.loads(output(capsys, "build", str(tiny_recipe), "--json", *words))
    voxels = [8 * 16 * 16, 4 * 8 * 8, 2 * 4 * 4]
    encoder = 27 * (1 * 4 * voxels[0] + 4 * 8 * voxels[1] + 8 * 8 * voxels[2])
    decoder = 27 * (16 * 8 * voxels[1] + 8 * 4 * voxels[0]) + 8 * 8 * voxels[1] + 8 * 4 * voxels[0]
    head = 3 * (4 * voxels[0] + 8 * voxels[1])
    assert facts["macs"] == encoder + decoder + head


def test_copy_keeps_comments_and_validates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output(capsys, "copy", "maskmed_hippocampus_cpu", str(tmp_path))
    copy = tmp_path / "maskmed_hippocampus_cpu.yaml"
    assert copy.read_text().startswith("# MaskMed on")
    assert "valid" in output(capsys, "validate", str(copy))
    assert zoo.load_recipe(copy) == zoo.load_recipe("maskmed_hippocampus_cpu")


def test_copy_is_named_after_its_file_and_claims_no_score(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of every recipe: the same settings under another name, and nothing of what was reached with it."""
    models = zoo.list(kind="model")
    assert len(models) >= 13
    for model in models:
        copy = tmp_path / f"my {model}.yaml"
        output(capsys, "copy", model, str(copy))
        assert zoo.load_recipe(copy) == zoo.load_recipe(model, {"name": f"my_{model}"})
        header = copy.read_text(encoding="utf-8").split("schema_version")[0]
        assert not re.search(r"Dice|Reached|Published|[ (]\.\d\d", header)
        assert "#" in header
        assert f"train {model} " not in header
    assert "train 'my maskmed_amos.yaml' --data" in (tmp_path / "my maskmed_amos.yaml").read_text(encoding="utf-8")
    for stem, name in (("1e5", "1e5"), ("null", "null"), ("...", "recipe"), ("ü", "recipe"), ("x" * 150, "x" * 100)):
        output(capsys, "copy", "maskmed_phantom", str(tmp_path / f"{stem}.yaml"))
        assert zoo.load_recipe(tmp_path / f"{stem}.yaml").name == name


@pytest.mark.parametrize("name", ["nowhere/x.yaml", "x" * 300 + ".yaml", "a\0b.yaml", "file/x.yaml"])
def test_copy_that_cannot_be_written_leaves_nothing(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert main(["copy", "maskmed_phantom", f"{tmp_path}/{name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_copy_on_a_full_disk_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    def opened(path: Path, *_: str, **__: str) -> io.StringIO:
        path.touch()
        return Full()

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OutputError, match="No space left"):
        write_new(tmp_path / "x.yaml", "text")
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


def test_scores_replace_scores_alone(capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--pred", str(dataset / "labelsTr"), "--ref", str(dataset / "labelsTr"), "--json"]
    for _ in range(2):
        output(capsys, *words, str(tmp_path / "scores.json"))
    (tmp_path / "notes").write_text("mine")
    for target in (tmp_path / "notes", tmp_path / "nowhere" / "s.json", Path("/dev/null"), tmp_path / ("x" * 300)):
        assert main([*words, str(target)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "notes").read_text() == "mine"


def test_validate_says_what_it_could_not_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert "left to the data set" in output(capsys, "validate", "maskmed_phantom", "--set", "data.labels=null")


def test_schema_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(output(capsys, "schema"))
    assert set(schema["required"]) == {"schema_version", "name", "model", "data", "train", "inference"}
