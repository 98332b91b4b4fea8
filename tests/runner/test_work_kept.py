"""One bad case, a full disk, little memory or a second process cost no work but their own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.predicted import STAMP
from maskmed_zoo.errors import CheckpointError, DataError, Failures, MemoryShortageError, NonFiniteError, OutputError
from maskmed_zoo.explain.explain import explain
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.write import Prediction, write_prediction
from maskmed_zoo.labels import Labels
from maskmed_zoo.lock import locked
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import LOCK, RunFolder
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset

QUICK = ["train.epochs=1", "train.iterations_per_epoch=1"]
CASES = ("case_00", "case_01", "case_02")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that validates on three of its four cases, evaluated."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.yaml").write_text(TINY)
    data = make_dataset(folder / "data")
    (data / "splits_final.json").write_text(json.dumps([{"train": ["case_03"], "val": list(CASES)}]))
    evaluate(train(load_recipe(folder / "tiny.yaml", QUICK), data=data, out=folder / "run", device="cpu"), device="cpu")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of all that."""
    shutil.copytree(made, tmp_path / "all")
    run, data = RunFolder(tmp_path / "all" / "run"), tmp_path / "all" / "data"
    manifest = run.manifest()
    manifest["data"][0]["path"] = str(data)
    run.manifest_file.write_text(json.dumps(manifest))
    return tmp_path / "all"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every volume that a network is shown."""
    shown: list[int] = []
    original = Predictor.segment

    def segment(self: Predictor, image: Any, *arguments: Any, **options: Any) -> Any:
        shown.append(image.size)
        return original(self, image, *arguments, **options)

    monkeypatch.setattr(Predictor, "segment", segment)
    return shown


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def message(call: Any, kind: type[Exception] = DataError) -> list[str]:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value).split("\n")


def test_predict_does_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = here / "data" / "imagesTr", here / "out"
    spoil(images / "case_01_0000.nii.gz")
    (line,) = message(lambda: predict(RunFolder(here / "run"), [images], out, device="cpu"))
    assert "case_01_0000.nii.gz: " in line
    assert line.endswith(f"(1 of 4 cases; the others are in {out})")
    spoil(images / "case_00_0000.nii.gz")
    assert main(["predict", str(here / "run"), str(images), str(here / "again"), "--device", "cpu"]) == 2
    *lines, last = capsys.readouterr().err.splitlines()[-3:]
    assert ["case_00" in lines[0], "case_01" in lines[1]] == [True, True]
    assert last == f"2 of 4 cases cannot be used; the others are in {here / 'again'}"
    assert {path.name for path in out.iterdir()} == {STAMP, *(f"case_{i:02d}.nii.gz" for i in (0, 2, 3))}


def test_a_run_is_scored_whole_or_not_at_all(here: Path, seen: list[int]) -> None:
    run = RunFolder(here / "run")
    shutil.rmtree(run.predictions)
    run.evaluation_file.unlink()
    scan = here / "data" / "imagesTr" / "case_01_0000.nii.gz"
    whole = scan.read_bytes()
    spoil(scan)
    (line,) = message(lambda: evaluate(run, device="cpu"))
    assert "case_01_0000.nii.gz: " in line
    assert not run.evaluation_file.exists()
    assert {path.name for path in run.predictions.glob("*.gz")} == {"case_00.nii.gz", "case_02.nii.gz"}
    scan.write_bytes(whole)
    del seen[:]
    assert len(evaluate(run, device="cpu")["cases"]) == 3
    assert len(seen) == 1, "the two that were finished are read"


def test_what_is_predicted_is_not_predicted_again(here: Path, seen: list[int]) -> None:
    """Unless the weights, the image or the settings are others, or a map is gone; the scores are the same."""
    run = RunFolder(here / "run")
    before = json.loads(run.evaluation_file.read_text())
    run.evaluation_file.unlink()
    again = evaluate(run, device="cpu")
    assert seen == []
    changed = {"date", "seconds_per_case"}  # the latter stood in the file alone
    assert before["seconds_per_case"] > 0
    assert {key: again[key] for key in again.keys() - changed} == {key: before[key] for key in before.keys() - changed}
    (run.predictions / "case_00.nii.gz").unlink()
    scan = here / "data" / "imagesTr" / "case_01_0000.nii.gz"
    os.utime(scan, ns=(1, 1))
    evaluate(run, device="cpu")
    assert len(seen) == 2
    text = run.recipe_file.read_text()
    assert "overlap: 0.5" in text
    run.recipe_file.write_text(text.replace("overlap: 0.5", "overlap: 0.25"))
    evaluate(run, device="cpu")
    assert len(seen) == 5
    model = load(run, device="cpu").model
    run.save_weights(model, "last", run.recipe(), epochs=7)
    assert evaluate(run, device="cpu")["epochs"] == 7
    assert len(seen) == 8


def test_a_finished_run_is_neither_trained_nor_predicted_again(
    here: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "step", lambda *_, **__: pytest.fail("a step"))
    words = ["train", str(here / "run" / "recipe.yaml"), "--data", str(here / "data"), "--out", str(here / "run")]
    assert main([*words, "--resume", "--device", "cpu"]) == 0
    assert "all 1 epochs are trained" in capsys.readouterr().err
    assert seen == []


def test_a_map_corrected_by_hand_is_advice_of_use(here: Path) -> None:
    run = RunFolder(here / "run")
    spoil(run.predictions / "case_00.nii.gz")
    (line,) = message(lambda: evaluate(run, device="cpu"))
    assert line.endswith(
        f"; move it away, or score the maps as they are: evaluate --pred {run.predictions} --ref DIR, where "
        f"DIR holds the references of these cases alone"
    )


def test_folders_tell_every_bad_case_and_what_has_no_reference(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pred, ref = here / "run" / "predictions", here / "data" / "labelsTr"
    shutil.copy(pred / "case_01.nii.gz", pred / "case_03.nii.gz")  # on the same grid
    shutil.copy(pred / "case_00.nii.gz", pred / "more.nii.gz")
    words = ["evaluate", "--pred", str(pred), "--ref", str(ref)]
    for name in ("case_01", "case_02"):
        spoil(pred / f"{name}.nii.gz")
    assert main(words) == 2
    first, second, last = capsys.readouterr().err.splitlines()
    assert ("case_01" in first, "case_02" in second) == (True, True)
    assert last.startswith("2 of 4 cases cannot be used")
    for name in ("case_01", "case_02"):
        (pred / f"{name}.nii.gz").unlink()
        (ref / f"{name}.nii.gz").unlink()
    assert main(words) == 0
    assert f"left out, without a reference in {ref}: 1 (more)" in capsys.readouterr().err


def test_training_tells_all_bad_cases_at_once(here: Path) -> None:
    data = here / "data"
    for name in ("imagesTr/case_00_0000", "labelsTr/case_02"):
        spoil(data / f"{name}.nii.gz")
    shutil.rmtree(here / ".maskmed_cache")
    recipe = load_recipe(here / "tiny.yaml", QUICK)
    for workers in (0, 1):
        call = lambda w=workers: train(recipe, data=data, out=here / "new", device="cpu", workers=w)  # noqa: E731
        (line,) = message(call)
        assert "case_00_0000.nii.gz: " in line
        assert "case_02.nii.gz: " in line
        assert "(2 of 4 cases; the others can be used" in line
        assert not (here / "new").exists()
        assert {path.stem for path in here.glob(".maskmed_cache/*/*")} == {"case_01", "case_03"}


def test_explain_does_the_others(here: Path) -> None:
    pytest.importorskip("matplotlib")
    spoil(here / "data" / "imagesTr" / "case_00_0000.nii.gz")
    run, out = RunFolder(here / "run"), here / "out"
    (line,) = message(lambda: explain(run, out, validation=2, device="cpu"))
    assert line.endswith(f"(1 of 2 cases; the others are in {out})")
    assert [case["case"] for case in json.loads((out / "explain.json").read_text())["cases"]] == ["case_01"]


@pytest.mark.parametrize(
    "shortage",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError("Unable to allocate"),
     RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")],
    ids=["cuda", "numpy", "cpu"],
)  # fmt: skip
def test_little_memory_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception) -> None:
    predictor = load(here / "run", device="cpu")

    def short(*_: Any, **__: Any) -> None:
        raise shortage

    monkeypatch.setattr(Predictor, "_output", short)
    (line,) = message(lambda: predictor.segment(np.zeros((9, 18, 18)), spacing=(2, 1, 1)), MemoryShortageError)
    assert "needs more memory than there is" in line
    assert "crop the image" in line
    assert len(message(lambda: predictor.files(here / "data" / "imagesTr", here / "out"), MemoryShortageError)) == 4
    monkeypatch.setattr(Trainer, "step", short)
    recipe = load_recipe(here / "tiny.yaml", QUICK)
    (line,) = message(lambda: train(recipe, data=here / "data", out=here / "new", device="cpu"), MemoryShortageError)
    assert "lower train.batch_size or data.patch_size" in line


def test_other_failures_are_not_taken_for_little_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Predictor, "_output", broken)
    predictor = load(here / "run", device="cpu")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predictor.segment(np.zeros((9, 18, 18)), spacing=(2, 1, 1))


def test_an_epoch_whose_steps_are_all_skipped(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def update(self: Trainer, *_: Any) -> dict[str, torch.Tensor]:
        if self.iteration == 0:
            raise NonFiniteError("loss is nan")
        self.optimizer.step()
        return {"loss": torch.tensor(1.0)}

    monkeypatch.setattr(Trainer, "_update", update)
    recipe = load_recipe(here / "tiny.yaml", [*QUICK, "train.epochs=2"])
    run = train(recipe, data=here / "data", out=here / "new", device="cpu")
    told = capsys.readouterr().err
    assert "epoch 1/2  every step skipped" in told
    assert "epoch 2/2  loss 1.000" in told
    assert run.metrics_file.read_text().count("\n") == 3


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """No file grows beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_last_epoch(here: Path) -> None:
    run = RunFolder(here / "run")
    recipe = load_recipe(run.recipe_file, {"train.epochs": 3})
    run.write_recipe(recipe)
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    size = run.weights_file("last").stat().st_size
    for limit in (size // 2, size + 1000):  # not even weights, or weights and no state
        with largest_file(limit):
            (line,) = message(
                lambda: train(recipe, data=here / "data", out=run.path, device="cpu", resume=True), OutputError
            )
        assert "cannot be written" in line
        assert {path for path in run.path.iterdir() if path.is_file()} == before.keys()
        assert run.state_file.read_bytes() == before[run.state_file]
        load(run, device="cpu")
    train(recipe, data=here / "data", out=run.path, device="cpu", resume=True)
    whole = train(recipe, data=here / "data", out=here / "whole", device="cpu")
    ours, theirs = (load_file(each.weights_file("last")) for each in (run, whole))
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("verb", ["predict", "evaluate", "explain", "export"])
def test_a_full_disk_is_one_line(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = here / "run", here / "out"
    words = {
        "predict": [str(run), str(here / "data" / "imagesTr"), str(out)],
        "evaluate": [str(run), "--json", str(out / "scores.json")],
        "explain": [str(run), "--validation", "1", "--out", str(out)],
        "export": [str(run), "--license", "MIT", "--out", str(out / "exported")],
    }[verb]
    out.mkdir()
    with largest_file(100):
        assert main([verb, *words, *([] if verb == "export" else ["--device", "cpu"])]) == 2
    assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert not [path for path in out.rglob("*") if path.is_file()]
    load(run, device="cpu")


def test_what_a_killed_process_left_is_cleaned_after_a_day(here: Path) -> None:
    run, then = RunFolder(here / "run"), time.time() - 2 * 24 * 3600
    left = [here / "run" / ".partial-a", run.predictions / ".partial-b", here / "out" / ".partial-c"]
    (here / "out").mkdir()
    for path in left:
        path.write_text("half")
        os.utime(path, (then, then))
    (here / "out" / ".partial-young").write_text("half")
    evaluate(run, device="cpu")
    predict(run, [here / "data" / "imagesTr"], here / "out", device="cpu")
    assert not any(path.exists() for path in left)
    assert (here / "out" / ".partial-young").exists()


TRAINS = """
import sys
from pathlib import Path
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.trainer import Trainer
from maskmed_zoo.runner.train import train
folder = Path(sys.argv[1])
def waits(*_, **__):
    print("trains", flush=True)
    sys.stdin.read()
Trainer.step = waits
train(load_recipe(folder / "tiny.yaml"), data=folder / "data", out=folder / "new", device="cpu")
"""


def test_one_process_trains_in_a_folder(here: Path) -> None:
    """Another is refused, fresh and resuming, and names the first; once that is killed, its run goes on."""
    recipe = load_recipe(here / "tiny.yaml", QUICK)
    words = [sys.executable, "-c", TRAINS, str(here)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "trains\n"
        recipe = load_recipe(here / "tiny.yaml")
        (line,) = message(
            lambda: train(recipe, data=here / "data", out=here / "new", device="cpu", resume=True), CheckpointError
        )
        assert line.startswith(f"{here / 'new'}: pid {first.pid} on ")
        first.kill()
        first.wait()
    run = train(recipe, data=here / "data", out=here / "new", device="cpu", resume=True)
    assert not (run.path / LOCK).exists()


def test_two_that_begin_at_once(here: Path) -> None:
    (here / "new").mkdir()
    recipe = load_recipe(here / "tiny.yaml", QUICK)
    with locked(here / "new" / LOCK):
        (line,) = message(lambda: train(recipe, data=here / "data", out=here / "new", device="cpu"), CheckpointError)
    assert f"pid {os.getpid()} on " in line
    assert "is training here" in line


def test_without_locks_training_goes_on_and_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    train(load_recipe(here / "tiny.yaml", QUICK), data=here / "data", out=here / "new", device="cpu")
    assert "no file locks (flock)" in capsys.readouterr().err


def test_weights_of_another_process_are_replaced_only_on_request(tmp_path: Path) -> None:
    labels, array = Labels({"background": 0, "a": 1}), np.zeros((2, 3, 4), np.uint8)
    prediction, target = Prediction(array, None, geometry_of(array, spacing=(1, 1, 1))), tmp_path / "a.nii.gz"
    write_prediction(target, prediction, labels, "1" * 64, overwrite=False)
    before = target.read_bytes()
    (line,) = message(lambda: write_prediction(target, prediction, labels, "2" * 64, overwrite=False))
    assert "made by other weights in the meantime" in line
    write_prediction(target, prediction, labels, "1" * 64, overwrite=False)
    assert target.read_bytes() == before
    write_prediction(target, prediction, labels, "2" * 64)


def test_weights_that_are_replaced_while_they_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum is that of the weights, not of those which training has put there since."""
    from maskmed_zoo.runner import run_folder

    run = RunFolder(here / "run")
    model, recipe = load(run, device="cpu").model, run.recipe()
    other = load(run, device="cpu").model
    for parameter in other.parameters():
        parameter.data.mul_(2)
    original, calls = run_folder.sha256_of, iter(range(9))

    def replaced(path: Path) -> str:
        if next(calls) == 0:
            run.save_weights(other, "last", recipe)
        return original(path)

    monkeypatch.setattr(run_folder, "sha256_of", replaced)
    sha256 = run.load_weights(model, "last", recipe)
    assert sha256 == original(run.weights_file("last"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_no_validation_cases_is_one_line(here: Path) -> None:
    run = RunFolder(here / "run")
    run.manifest_file.write_text(json.dumps(run.manifest() | {"validation": []}))
    assert message(lambda: zoo.evaluate(run.path, device="cpu"))[0].startswith("the run has no validation cases")


def test_a_line_holds_what_it_can() -> None:
    failures = Failures()
    failures.lines = [f"case {index}: {'x' * 90}" for index in range(100)]
    (line,) = message(lambda: failures.tell(200, "the others are done", in_one_line=True))
    assert len(line) < 2000
    assert line.startswith("case 0: ")
    assert line.endswith("like these (100 of 200 cases; the others are done)")
    assert len(message(lambda: failures.tell(200, "the others are done"))) == 101
    Failures().tell(200, "all are done")
