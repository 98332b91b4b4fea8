"""What a run has written is read again whoever changed it: an error of one line, or training goes on, never a crash."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import maskmed_zoo as zoo
from maskmed_zoo.errors import CheckpointError, DataError, OutputError, UserError
from maskmed_zoo.export.export import export
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner import checkpoint
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.metrics_file import read_rows
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset

EPOCHS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of three epochs, its data set and its evaluation."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "tiny.yaml").write_text(TINY)
    recipe = load_recipe(folder / "tiny.yaml", [f"train.epochs={EPOCHS}", "train.iterations_per_epoch=1"])
    run = train(recipe, data=make_dataset(folder / "data"), out=folder / "run", device="cpu")
    evaluate(run, device="cpu")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunFolder:
    """The run, to be damaged; there is one state to continue from."""
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "state_previous.pt").unlink()
    return RunFolder(tmp_path / "run")


def resume(run: RunFolder, made: Path) -> RunFolder:
    return train(run.recipe(), data=made / "data", out=run.path, device="cpu", resume=True)


def refused(call: Callable[[], object], kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRONG: dict[str, Any] = {
    "data": [None, [3], [{}], {}, [{"path": 3}]],
    "validation": [None, [3], "case_00", ["../../case_00"], ["a\0b"]],
    "fingerprint": [None, [{}], [{"mean": True}], [[]], [{"mean": 1, "std": -1, "percentile_00_5": 0}]],
    "fold": ["0", True, 1.5, None],
    "dataset": [3, None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_manifest_of_other_content(run: RunFolder, key: str, value: object) -> None:
    manifest = run.manifest()
    run.manifest_file.write_text(json.dumps(manifest | {key: value}))
    assert f"manifest.json: cannot be read ({key}" in refused(run.manifest)
    refused(lambda: load(run, device="cpu"))
    del manifest[key]
    run.manifest_file.write_text(json.dumps(manifest))
    assert f"manifest.json: cannot be read ({key}: Field required" in refused(run.manifest)


@pytest.mark.parametrize("key", ["path", "name", "cases", "prefix", "labels", "annotated"])
def test_a_data_set_in_a_manifest(run: RunFolder, key: str) -> None:
    manifest = run.manifest()
    for value in (None, 3, {"background": 0, "left": True}, "../", {"background": 0, "left": 10**30}):
        if key not in ("path", "name") or not isinstance(value, str):
            damaged = manifest["data"][0] | {key: value}
            run.manifest_file.write_text(json.dumps(manifest | {"data": [damaged]}))
            assert f"manifest.json: cannot be read (data.0.{key}" in refused(run.manifest)


@pytest.mark.parametrize(
    "content",
    ['{"fold": 0, "fold": 1}', "[" * 100_000, '{"fold": ' + "9" * 5000 + "}", '{"fingerprint": [{"mean": NaN}]}', "\0"],
    ids=["twice", "deep", "digits", "NaN", "NUL"],
)
def test_a_manifest_that_is_no_json(run: RunFolder, content: str) -> None:
    run.manifest_file.write_text(content)
    assert "manifest.json: cannot be read" in refused(lambda: evaluate(run, device="cpu"))


@pytest.mark.parametrize("name", ["manifest.json", "state_last.pt", "metrics.csv", "evaluation.json"])
def test_a_pipe_or_a_folder_in_the_place_of_a_file(run: RunFolder, made: Path, name: str) -> None:
    """Nobody waits for the pipe; files that are only written again are in the way."""
    path = run.path / name
    for make in (os.mkfifo, Path.mkdir):
        path.unlink()
        make(path)
        if name in ("manifest.json", "state_last.pt"):
            assert "no plain file" in refused(lambda: resume(run, made))
        else:
            resume(run, made)
        if name == "evaluation.json":
            with pytest.raises(OutputError, match="no plain file"):
                evaluate(run, device="cpu")
        path.rmdir() if path.is_dir() else path.unlink()
        path.touch()


def deep(state: Any, path: str, value: Any) -> None:
    *keys, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
    for key in keys:
        state = state[key]
    if value is KeyError:
        del state[last]
    else:
        state[last] = value


STATES = [
    ("epoch", True), ("epoch", -1), ("epoch", 10**30), ("epoch", 2), ("epoch", "3"), ("epoch", KeyError),
    ("iteration", 2), ("iteration", None), ("skipped_in_a_row", -1), ("skipped_in_a_row", 1.5),
    ("best", "x"), ("best", float("nan")), ("best", 7.0), ("average", float("inf")), ("average", None),
    ("model", []), ("model", {"x": 1}), ("model", KeyError),
    ("optimizer", None), ("optimizer/state", []), ("optimizer/param_groups", []),
    ("optimizer/param_groups/0/params", [5]),
    ("optimizer/state/0", {}), ("optimizer/state/0/step", None), ("optimizer/state/0/step", torch.tensor(-1.0)),
    ("optimizer/state/0/exp_avg", torch.zeros(3)), ("optimizer/state/0/exp_avg_sq", torch.tensor(float("nan"))),
    ("optimizer/state/0/momentum_buffer", torch.zeros(3)), ("optimizer/state/9999", {}),
    ("schedule", {}), ("schedule/last_epoch", 1), ("schedule/last_epoch", -1), ("scaler", 3), ("scaler", {"scale": -1}),
    ("stale", -1), ("stale", True), ("stale", EPOCHS + 1), ("stale", 1.0), ("ema", {}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), STATES, ids=lambda value: str(value)[:20])
def test_a_state_of_other_content(run: RunFolder, path: str, value: object) -> None:
    state = torch.load(run.state_file, weights_only=True)
    deep(state, path, value)
    torch.save(state, run.state_file)
    message = refused(lambda: checkpoint.load(run, Trainer(run.recipe(), torch.device("cpu"))))
    assert message.startswith(f"{run.state_file}: ")
    assert "cannot be continued from" in message


@pytest.mark.parametrize("rng", [torch.get_rng_state(), None, "x"], ids=["whole", "none", "damaged"])
def test_random_states_of_an_earlier_version_are_not_read(run: RunFolder, rng: object) -> None:
    """Nor is a count of validations missed that it did not write, and the average that it did not know."""
    state = torch.load(run.state_file, weights_only=True)
    assert not {"rng", "device_rng"} & state.keys()
    del state["stale"], state["ema"]
    torch.save(state | {"rng": rng, "device_rng": rng}, run.state_file)
    trainer = Trainer(run.recipe(), torch.device("cpu"))
    assert checkpoint.load(run, trainer).epoch == EPOCHS
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("name", ["weights", "list", "nnunet", "text", "empty"])
def test_another_file_in_place_of_the_state(run: RunFolder, made: Path, name: str) -> None:
    weights = torch.load(run.state_file, weights_only=True)["model"]
    contents: dict[str, Any] = {"weights": weights, "list": [1], "nnunet": {"network_weights": weights}}
    if name in contents:
        torch.save(contents[name], run.state_file)
    else:
        run.state_file.write_bytes(b"" if name == "empty" else b"epoch: 3")
    assert "cannot be continued from" in refused(lambda: resume(run, made))


def test_settings_of_a_state_are_those_of_the_recipe(run: RunFolder, made: Path) -> None:
    """Rates come from the recipe's schedule, whatever stands in the file."""
    state = torch.load(run.state_file, weights_only=True)
    state["optimizer"]["param_groups"][0] |= {"lr": 1e30, "betas": "x"}
    state["schedule"]["_last_lr"] = state["schedule"]["step"] = None
    torch.save(state, run.state_file)
    resume(run, made)


def cut(text: str, how: str) -> str:
    lines = text.splitlines(keepends=True)
    return {
        "missing": "",
        "in a row": text[: -len(lines[-1]) // 2],
        "in a number": text[:-3],
        "repeated": "".join([*lines, lines[1].replace("0,1,", "0,1,9", 1)]),
        "of another run": "".join([*lines[:3], lines[3].replace("2,3,", "2,900,", 1)]),
        "no row": lines[0],
        "NUL": text.replace("2,3,", "2,\0,"),
    }[how]


@pytest.mark.parametrize(
    ("how", "lost"),
    [("missing", [1, 2, 3]), ("in a row", [3]), ("in a number", [3]), ("repeated", [1]), ("of another run", [3]),
     ("no row", [1, 2, 3]), ("NUL", [3])],
)  # fmt: skip
def test_lost_rows_of_metrics_are_told_and_block_nothing(
    how: str, lost: list[int], run: RunFolder, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an epoch of a longer run, whose state is whole."""
    longer = load_recipe(run.recipe_file, {"train.epochs": EPOCHS + 1})
    run.write_recipe(longer)
    with run.metrics_file.open(newline="") as file:
        text = cut(file.read(), how)
    run.metrics_file.write_text(text, newline="")
    if how == "missing":
        run.metrics_file.unlink()
    resume(run, made)
    told = [line for line in capsys.readouterr().err.splitlines() if "metrics.csv" in line]
    assert len(told) == 1
    assert f"the rows of {len(lost)} of 3 epochs are lost, the first that of epoch {lost[0]};" in told[0]
    with run.metrics_file.open(newline="") as file:
        assert [int(row["epoch"]) + 1 for row in csv.DictReader(file)] == sorted({1, 2, 3, 4} - {*lost})
    assert evaluate(run, device="cpu")["epochs"] == 4


def test_whole_metrics_are_read_as_they_are(run: RunFolder, tmp_path: Path) -> None:
    with run.metrics_file.open(newline="") as file:
        assert read_rows(run.metrics_file, 1) == list(csv.DictReader(file))
    assert read_rows(run.metrics_file, 2) == []
    assert read_rows(tmp_path, 1) == []


def test_a_lost_state_is_not_a_new_run(run: RunFolder, made: Path) -> None:
    before = run.weights_file("last").read_bytes()
    run.state_file.unlink()
    assert "is missing, though epochs were trained" in refused(lambda: resume(run, made))
    run.evaluation_file.unlink()
    assert "is missing, though epochs were trained" in refused(lambda: resume(run, made))
    assert run.weights_file("last").read_bytes() == before


def test_lost_weights_are_written_again_from_the_state(run: RunFolder, made: Path) -> None:
    file = run.weights_file("last")
    before = load_file(file)
    file.unlink()
    assert "is missing, though state_last.pt is there; resume" in refused(lambda: load(run, device="cpu"))
    resume(run, made)
    assert all(torch.equal(before[name], tensor) for name, tensor in load_file(file).items())
    run.weights_file("best").unlink()
    assert "copy it back, or take the last ones" in refused(lambda: load(run, which="best", device="cpu"))


def test_a_lost_manifest_is_not_made_anew(run: RunFolder, made: Path) -> None:
    run.manifest_file.unlink()
    assert "manifest.json: is missing" in refused(lambda: resume(run, made))


def test_an_exported_folder_without_its_card(run: RunFolder, tmp_path: Path) -> None:
    export(run, tmp_path / "out", license="MIT")
    (tmp_path / "out" / "card.json").unlink()
    assert "no card.json beside weights.safetensors" in refused(lambda: zoo.load(tmp_path / "out", device="cpu"))


@pytest.mark.parametrize("damage", ["nan", "int", "complex"])
def test_weights_of_other_numbers(run: RunFolder, damage: str) -> None:
    from safetensors import safe_open

    file = run.weights_file("last")
    with safe_open(file, framework="pt") as content:
        header = content.metadata()
    tensors = load_file(file)
    name, tensor = next(iter(tensors.items()))
    changed = {"nan": tensor * torch.nan, "int": tensor.long(), "complex": tensor.to(torch.complex64)}[damage]
    save_file(tensors | {name: changed}, file, header)
    assert f"'{name}' " in refused(lambda: load(run, device="cpu"))


def test_scores_are_exported_if_they_are_whole(run: RunFolder, tmp_path: Path) -> None:
    whole = json.loads(run.evaluation_file.read_text())
    assert export(run, tmp_path / "whole", license="MIT")["metrics"]["mean_dice"] == whole["mean_dice"]
    damages: list[Any] = [{"mean_dice": "x"}, {"labels": []}, {"labels": {"left": 3}}, {"cases": 5}, {"mean_dice": 7.0}]
    for index, damage in enumerate(damages):
        run.evaluation_file.write_text(json.dumps(whole | damage))
        assert export(run, tmp_path / str(index), license="MIT")["metrics"] is None


def test_data_that_have_moved_are_asked_for(made: Path, run: RunFolder) -> None:
    manifest = run.manifest()
    manifest["data"][0]["path"] = "/gone"
    run.manifest_file.write_text(json.dumps(manifest))
    assert "/gone: no such folder any more" in (message := refused(lambda: evaluate(run, device="cpu"), DataError))
    assert "--data" in message
    evaluate(run, data=made / "data", device="cpu")


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_a_path_at_which_nothing_can_be(name: str, made: Path, run: RunFolder) -> None:
    out = made / name
    calls: list[Callable[[], object]] = [
        lambda: zoo.train(run.recipe(), data=made / "data", out=out, device="cpu"),
        lambda: zoo.load(out),
        lambda: zoo.load(run.path, device="cpu").files(made / "data" / "imagesTr", out),
        lambda: zoo.evaluate(pred=out, ref=made / "data" / "labelsTr"),
        lambda: zoo.evaluate(run.path, data=out),
        lambda: export(run, out, license="MIT"),
    ]
    for call in calls:
        assert "is no usable path" in refused(call, UserError)
