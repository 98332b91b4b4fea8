"""`export`, `pull`, `push` and `nnunet install`: what they write, and every mistake in one line with nothing left."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo import renamed
from maskmed_zoo.cli.main import main
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.export.export import export
from maskmed_zoo.runner.run_folder import RunFolder
from tests.cli.test_bad_input import refused
from tests.conftest import make_dataset
from tests.weights.test_arriving import hidden, locked, process

QUICK = ("--set", "train.epochs=1", "--set", "train.iterations_per_epoch=1", "--device", "cpu")


@pytest.fixture
def run(tiny_recipe: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A trained run."""
    path = tmp_path / "run"
    assert main(["train", str(tiny_recipe), "--data", str(dataset), "--out", str(path), *QUICK]) == 0
    capsys.readouterr()
    return path


def test_export_pull_create(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "exported"
    assert main(["export", str(run), "--out", str(out), "--license", "CC-BY-4.0"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "card.json", "recipe.yaml", "weights.safetensors"]
    card = json.loads((out / "card.json").read_text())
    assert card["license"] == "CC-BY-4.0"
    assert card["class_names"] == ["background", "left", "right"]
    assert card["data"] == {"dataset": "Boxes", "fold": 0, "seed": 0}
    scores = json.loads((run / "evaluation.json").read_text())
    assert card["metrics"]["mean_dice"] == scores["mean_dice"]
    assert "dice left" in card["metrics"]
    assert card["files"]["weights.safetensors"]["sha256"] == scores["weights_sha256"]
    shown = (out / "README.md").read_text()
    assert shown.startswith("---\nlicense: cc-by-4.0\n")
    assert not [text for text in (json.dumps(card), shown) if str(tmp_path) in text or "case_" in text]

    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        for path in out.iterdir():
            file.write(path, path.name)
    assert main(["pull", str(tmp_path / "m.zip"), "--out", str(tmp_path / "pulled")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'pulled'}: tiny, license CC-BY-4.0\n"
    model = zoo.create(tmp_path / "pulled" / "recipe.yaml", pretrained=tmp_path / "pulled")
    trained = zoo.create(run / "recipe.yaml")
    folder = RunFolder(run)
    folder.load_weights(trained, "last", folder.recipe())
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trained.state_dict().items())


def test_exported_weights_predict_as_the_run_does(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, image = tmp_path / "exported", dataset / "imagesTr" / "case_00_0000.nii.gz"
    assert main(["export", str(run), "--out", str(out), "--license", "CC0-1.0"]) == 0
    maps = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for folder, target in zip((run, out), maps, strict=True):
        assert main(["predict", str(folder), str(image), str(target), "--device", "cpu"]) == 0
    first, second = (np.asarray(nib.load(path).dataobj) for path in maps)
    assert np.array_equal(first, second)
    capsys.readouterr()
    assert "this needs the run that made them" in refused(capsys, "evaluate", out)
    content = bytearray((out / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "weights.safetensors").write_bytes(content)
    assert "sha256 is not the card's" in refused(capsys, "predict", out, image, tmp_path / "c.nii.gz")
    assert not (tmp_path / "c.nii.gz").exists()


def test_export_of_weights_that_were_not_scored(run: Path, tmp_path: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps({"weights_sha256": "other"}))
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--license", "Ask me!"]) == 0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["metrics"] is None
    shown = (tmp_path / "out" / "README.md").read_text()
    assert "not evaluated" in shown
    assert shown.startswith('---\nlicense: other\nlicense_name: "ask-me"\n')


def test_export_killed_in_a_race_and_without_room(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "in" / "out", ["--license", "CC0-1.0"]
    code, said = process(run, out, verb="export", largest=3000).end()
    assert (code, said.count("\n")) == (2, 1)
    assert "cannot be written (File too large)" in said
    assert not out.parent.exists()
    out.parent.mkdir()
    with locked(hidden(out)):
        assert "another process is putting weights there" in refused(capsys, "export", run, "--out", out, *words)
    (hidden(out) / "weights.safetensors.d").mkdir()  # of a killed process
    ends = sorted(each.end() for each in [process(run, out, verb="export") for _ in range(2)])
    assert [code for code, _ in ends] == [0, 2]
    assert ends[1][1].count("\n") == 1
    assert len(list(out.iterdir())) == 4
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    for name in ("nul\0byte", "n" * 255, "x/" * 3000):
        said = refused(capsys, "export", run, "--out", tmp_path / name, *words)
        assert "is no usable path" in said or "cannot be made a folder" in said


def test_export_beside_scores_of_other_kinds(run: Path, tmp_path: Path) -> None:
    of_these = {"weights_sha256": json.loads((run / "evaluation.json").read_text())["weights_sha256"]}
    odd: list[Any] = [{}, {"labels": 1, "cases": []}, {"labels": {"a": 1}, "cases": 1}, {"labels": {}}]
    for index, scores in enumerate([[], 1, None, *(each | of_these for each in odd)]):
        (run / "evaluation.json").write_text(json.dumps(scores))
        assert main(["export", str(run), "--out", str(tmp_path / f"out{index}"), "--license", "MIT"]) == 0
        assert json.loads((tmp_path / f"out{index}" / "card.json").read_text())["metrics"] is None


def test_the_old_name_of_an_option(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    renamed.log_once.cache_clear()
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--licence", "CC0-1.0"]) == 0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["license"] == "CC0-1.0"
    assert caplog.messages == ["'--licence' is now '--license'; both are read, the new one is written"]
    capsys.readouterr()
    for words, where in ((("--help",), "out"), ((str(run), "--out", "x"), "err")):
        with pytest.raises(SystemExit):
            main(["export", *words])
        shown = getattr(capsys.readouterr(), where)
        assert "--license" in shown
        assert "--licence" not in shown


def test_mistakes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(p.name for p in tmp_path.iterdir())
    out = tmp_path / "out"
    words = ["--out", out, "--license", "CC0-1.0"]
    assert "no run here" in refused(capsys, "export", tmp_path, *words)
    assert "exists already" in refused(capsys, "export", run, "--out", run, "--license", "CC0-1.0")
    assert "the license is empty" in refused(capsys, "export", run, "--out", out, "--license", " ")
    (run / "weights_last.safetensors").write_bytes(b"\x80\x04 pickle")
    assert "not a whole safetensors file" in refused(capsys, "export", run, *words)
    assert "expected an address" in refused(capsys, "pull", "http://example.org/card.json", "--out", out)
    assert "ends in /card.json or .zip" in refused(capsys, "pull", "https://example.org/w.pt", "--out", out)
    assert "not a whole zip file" in refused(capsys, "pull", tmp_path / "none.zip", "--out", out)
    assert "expected OWNER/NAME" in refused(capsys, "pull", "hf:x", "--out", out)
    assert "exists already" in refused(capsys, "pull", "hf:x/y", "--out", run)
    assert "not a card of exported weights" in refused(capsys, "push", run, "x/y")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "maskmed-zoo[hub]" in refused(capsys, "pull", "hf:x/y", "--out", out)
    assert "did you mean 'pointwise_amos'" in refused(
        capsys, "nnunet", "install", "--recipe", "pointwise_amso", "--dir", out
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_nnunet_install(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["nnunet", "install"]) == 0
    assert main(["nnunet", "install", "--recipe", "pointwise_amos", "--set", "train.epochs=5", "--dir", "a b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"export nnUNet_extTrainer={tmp_path / 'nnunet_trainers'}"
    assert f"export nnUNet_extTrainer='{tmp_path / 'a b'}'" in lines
    assert any(line.endswith("-tr nnUNetTrainer_MaskMed_pointwise_amos") for line in lines)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "a b/nnUNetTrainer_MaskMed_pointwise_amos.py",
        "a b/nnUNetTrainer_MaskMed_pointwise_amos.yaml",
        "nnunet_trainers/nnUNetTrainer_MaskMed.py",
        "nnunet_trainers/nnUNetTrainer_MaskMed.yaml",
    ]
    written = zoo.load_recipe(tmp_path / files[1])
    assert written == zoo.load_recipe("pointwise_amos", {"train.epochs": 5})
    assert "exists with other content" in refused(
        capsys, "nnunet", "install", "--recipe", "pointwise_amos", "--dir", tmp_path / "a b"
    )


@pytest.mark.parametrize("resume", [False, True])
def test_exported_weights_are_not_trained_over(resume: bool, tmp_path: Path) -> None:
    run = RunFolder(Path(__file__).parents[1] / "runner" / "earlier_run")
    export(run, tmp_path / "exported", license="mit")
    before = (tmp_path / "exported" / "weights.safetensors").read_bytes()
    data = make_dataset(tmp_path / "Dataset001_Boxes")
    with pytest.raises(CheckpointError, match="holds exported weights, which are not trained further"):
        zoo.train(tmp_path / "exported" / "recipe.yaml", data=data, out=tmp_path / "exported", resume=resume)
    assert (tmp_path / "exported" / "weights.safetensors").read_bytes() == before
