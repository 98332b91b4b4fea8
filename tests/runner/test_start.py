"""How a training starts and goes on: weights of others, frozen parts, a longer run, and a run's folder alone."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.errors import ArgumentError, CheckpointError, JointError, RecipeError, UserError
from maskmed_zoo.files import sha256_of
from maskmed_zoo.recipe import Recipe, dump_recipe, load_recipe
from maskmed_zoo.runner import train as train_module
from maskmed_zoo.runner.optimizer import rate_factor
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.start import begin_fresh, load_init
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset

CPU = torch.device("cpu")
QUICK = {"train.epochs": 1, "train.iterations_per_epoch": 2}
NEW = {"background": 0, "right": 1, "tumor": 2, "left": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of one epoch, on the data set beside it."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    data = make_dataset(folder / "Dataset001_Boxes")
    return train(load_recipe(folder / "tiny.yaml", QUICK), data=data, out=folder / "run", device="cpu")


@pytest.fixture
def data(base: RunFolder) -> Path:
    return base.path.with_name("Dataset001_Boxes")


@pytest.fixture
def run(base: RunFolder, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on with; the data set it knows is still that of the original."""
    return shutil.copytree(base.path, tmp_path / "run")


def recipe_of(base: RunFolder, **settings: Any) -> Recipe:
    return load_recipe(base.recipe(), {key.replace("__", "."): value for key, value in settings.items()})


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / "weights_last.safetensors")


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def line(call: Callable[[], object], kind: type[UserError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What networks hold when their first step begins."""
    step, seen = Trainer.step, list[dict[str, Tensor]]()

    def watched(self: Trainer, **batch: Tensor) -> dict[str, float]:
        if not self.iteration:
            seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return step(self, **batch)

    monkeypatch.setattr(Trainer, "step", watched)
    return seen


def test_a_run_starts_from_another(
    base: RunFolder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its first step sees, what is printed and what the manifest keeps."""
    begun = first_weights(monkeypatch)
    recipe = tmp_path / "next.yaml"
    recipe.write_text(dump_recipe(recipe_of(base)), encoding="utf-8")
    words = ["train", recipe, "--data", data, "--out", tmp_path / "run", "--init", base.path, "--device", "cpu"]
    assert main(list(map(str, words))) == 0
    old = weights(base.path)
    assert all(torch.equal(begun[0][name], tensor) for name, tensor in old.items())
    assert f"weights_last.safetensors: {len(old)} tensors loaded, 0 adapted, 0 fresh, 0 ig" in capsys.readouterr().err
    kept = manifest(tmp_path / "run")["init"]
    assert kept["source"] == str(base.path)
    assert kept["file"] == str(base.weights_file("last"))
    assert kept["sha256"] == sha256_of(base.weights_file("last"))
    kept["report"]["loaded"].sort()
    assert kept["report"] == {"loaded": sorted(old), "adapted": {}, "missing": {}, "unexpected": [], "share": 1.0}
    assert not torch.equal(weights(tmp_path / "run")["head.decoder.queries.0"], old["head.decoder.queries.0"])


def test_a_resumed_run_does_not_load_again(
    base: RunFolder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its second epoch, and killed before its first state: both end as the undisturbed run does."""
    recipe, source = recipe_of(base, train__epochs=2, data__labels=None), shutil.copytree(base.path, tmp_path / "s")
    how: dict[str, Any] = {"data": data, "device": "cpu"}
    whole = train(recipe, out=tmp_path / "whole", init=source, **how)
    step = Trainer.step
    for dies_at in (3, 1):
        taken, out = iter(range(100)), tmp_path / f"dies at {dies_at}"

        def dies(self: Trainer, *, taken: Any = taken, dies_at: int = dies_at, **batch: Tensor) -> dict[str, float]:
            if next(taken) == dies_at:
                raise KeyboardInterrupt
            return step(self, **batch)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", dies)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, out=out, init=source, **how)
        if dies_at == 3:
            with monkeypatch.context() as patch:
                patch.delattr(train_module, "load_init")
                train(recipe, out=out, resume=True, **how)
        else:
            content = (source / "weights_last.safetensors").read_bytes()
            other = {name: tensor + 1 for name, tensor in weights(source).items()}
            torch.save(other, source / "weights_last.safetensors")
            assert "has changed since the run began from it" in line(lambda: train(recipe, out=out, resume=True, **how))  # noqa: B023
            (source / "weights_last.safetensors").write_bytes(content)
            train(recipe, out=out, resume=True, init=source, **how)
        assert all(torch.equal(weights(out)[name], tensor) for name, tensor in weights(whole.path).items())
        assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(whole.path)]


def test_another_start_is_refused_when_resuming(base: RunFolder, data: Path, run: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"data": data, "device": "cpu", "resume": True}
    message = line(lambda: train(base.recipe(), out=run, init=base.path, **how))
    assert "the run began from fresh weights, and goes on from its own state; leave out --init" in message
    kept = manifest(run) | {"init": {"source": str(base.path), "file": "f", "sha256": "x", "report": {}}}
    (run / "manifest.json").write_text(json.dumps(kept), encoding="utf-8")
    assert f"the run began from {base.path}" in line(lambda: train(base.recipe(), out=run, init=tmp_path, **how))
    train(base.recipe(), out=run, init=base.path, **how)
    (run / "manifest.json").write_text(json.dumps(kept | {"init": 3}), encoding="utf-8")
    assert "manifest.json: cannot be read (init:" in line(lambda: train(base.recipe(), out=run, **how))


def test_a_start_that_is_none_leaves_no_run(base: RunFolder, data: Path, tmp_path: Path) -> None:
    narrow = recipe_of(base, model__encoder__channels=[6, 10, 10], model__neck__width=24, model__head__width=24)
    for init, words in ((tmp_path / "none.pt", "no such file"), (base.path, "fits next to nothing of the network")):
        message = line(lambda: train(narrow, data=data, out=tmp_path / "out", device="cpu", init=init))  # noqa: B023
        assert words in message
    assert not (tmp_path / "out").exists()


PARTS = ("encoder", "neck", "decoder", "head")


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_frozen_parts_stay_as_they_are(kind: str, tiny_recipe: Path) -> None:
    """No gradient, no decay, no momentum, no statistics; the others are trained, and go on from a state."""
    frozen = ("encoder", "head")
    settings = {"train.freeze": ["head", "encoder"], "train.optimizer.kind": kind, "train.optimizer.weight_decay": 0.1}
    recipe = load_recipe(tiny_recipe, settings)
    assert recipe.train.freeze == frozen

    def begun() -> Trainer:
        trainer = Trainer(recipe, CPU)
        trainer.model.encoder.add_module("norm", nn.BatchNorm3d(1))
        trainer.model.decoder.add_module("norm", nn.BatchNorm3d(1))
        return trainer

    trainer = begun()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    batch = torch.randn(2, 1, 8, 16, 16), torch.randint(0, 3, (2, 8, 16, 16))
    for _ in range(2):
        trainer.step(*batch)
    assert {name: part.training for name, part in trainer.model.parts().items()} == {
        name: name not in frozen for name in PARTS
    }
    assert [m.training for m in trainer.model.modules() if isinstance(m, nn.BatchNorm3d)] == [False, True]
    after = trainer.model.state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"neck", "decoder"}
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} <= {
        id(p) for part in ("neck", "decoder") for p in trainer.model.parts()[part].parameters()
    }
    assert all(p.grad is None for part in frozen for p in trainer.model.parts()[part].parameters())
    again = begun()
    again.load_state(copy.deepcopy(trainer.state()))
    for each in (trainer, again):
        torch.manual_seed(0)
        each.step(*batch)
    assert all(
        torch.equal(tensor, trainer.model.state_dict()[name]) for name, tensor in again.model.state_dict().items()
    )


def test_a_frozen_part_with_fresh_weights_is_told(base: RunFolder, tmp_path: Path) -> None:
    said: list[str] = []
    trainer = Trainer(recipe_of(base, train__freeze=["encoder", "neck"]), CPU, said.append)
    begin_fresh(trainer)
    save_file({n: w for n, w in weights(base.path).items() if not n.startswith("neck.")}, tmp_path / "w.safetensors")
    load_init(trainer, tmp_path / "w.safetensors")
    load_init(trainer, base.path)
    told = [words for words in said if words.startswith("train.freeze: ")]
    assert [words.partition(" will not be trained")[0] for words in told] == [
        "train.freeze: encoder and neck", "train.freeze: neck"
    ]  # fmt: skip


def test_nothing_left_to_train_is_refused(tiny_recipe: Path) -> None:
    skip = {"model.neck": {"kind": "skip"}, "train.freeze": ["encoder", "decoder", "head"]}
    for settings in (skip, {"train.freeze": PARTS}):
        message = line(lambda: Trainer(load_recipe(tiny_recipe, settings), CPU), JointError)  # noqa: B023
        assert "train.freeze: nothing is left to train without encoder, " in message
    wrong = line(lambda: load_recipe(tiny_recipe, {"train.freeze": ["encoders"]}), RecipeError)
    assert "'encoders' is not one of encoder, neck, decoder, head; did you mean 'encoder'?" in wrong


def test_frozen_runs_resume(base: RunFolder, data: Path, tmp_path: Path) -> None:
    """From the command line, with `--freeze` for each part."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY, encoding="utf-8")
    words = ["train", recipe, "--data", data, "--init", base.path, "--device", "cpu", "--freeze", "encoder"]
    words = [*map(str, words), "--freeze", "neck", "--out", str(tmp_path / "run")]
    assert main([*words, "--set", "train.iterations_per_epoch=2", "--set", "train.epochs=1"]) == 0
    assert load_recipe(tmp_path / "run" / "recipe.yaml").train.freeze == ("encoder", "neck")
    for epochs in (1, 2):
        found = weights(tmp_path / "run")
        changed = [name for name, tensor in weights(base.path).items() if not torch.equal(tensor, found[name])]
        assert {name.split(".")[0] for name in changed} == {"decoder", "head"}
        assert len(rows(tmp_path / "run")) == epochs
        assert main(["train", "--resume", str(tmp_path / "run"), "--extend-to", "2"]) == 0


def test_a_finished_run_is_lengthened_on_purpose(
    base: RunFolder, data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if its recipe had been longer from there on, which is what writing so into the file by hand makes it."""
    by_hand = shutil.copytree(run, tmp_path / "by hand")
    (by_hand / "recipe.yaml").write_text(dump_recipe(recipe_of(base, train__epochs=3)), encoding="utf-8")
    train(recipe_of(base, train__epochs=3), data=data, out=by_hand, device="cpu", resume=True)
    words = ["train", "--resume", str(run), "--extend-to", "3"]
    assert main(words) == 0
    assert all(torch.equal(weights(run)[name], tensor) for name, tensor in weights(by_hand).items())
    config = base.recipe().train.optimizer
    for row, (step, total) in zip(rows(run), [(0, 2), (2, 6), (4, 6)], strict=True):
        assert float(row["lr_cnn"]) == pytest.approx(config.lr * rate_factor(config, step, total))
    assert RunFolder(run).recipe().train.epochs == 3
    (record,) = manifest(run)["extended"]
    assert (record["from"], record["to"], record["when"][:2]) == (1, 3, "20")
    assert json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["epochs"] == 3
    capsys.readouterr()
    assert main(words) == 0  # the same again, as a job that is queued anew
    assert "all 3 epochs are trained" in capsys.readouterr().err
    assert manifest(run)["extended"] == [record]
    train(base.recipe(), data=data, out=run, device="cpu", resume=True, extend_to=3)  # with the recipe it began with


def test_what_cannot_be_lengthened(base: RunFolder, data: Path, run: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"data": data, "out": run, "device": "cpu"}
    longer = recipe_of(base, train__epochs=5)
    message = line(lambda: train(longer, resume=True, **how))
    assert (
        "train.epochs was 1, now 5; resume with the run's recipe.yaml, or lengthen the run with --extend-to 5"
        in message
    )
    other = recipe_of(base, train__epochs=5, train__optimizer__lr=1)
    assert "--extend-to" not in line(lambda: train(other, resume=True, **how))
    assert "train.optimizer.lr was 0.003, now 1" in line(lambda: train(other, resume=True, extend_to=5, **how))
    assert "give --resume (resume=) too" in line(lambda: train(longer, extend_to=5, **how), ArgumentError)
    nowhere: dict[str, Any] = how | {"out": tmp_path / "nowhere"}
    assert "no run to lengthen" in line(lambda: train(longer, resume=True, extend_to=5, **nowhere))
    assert "train.epochs" in line(lambda: train(longer, resume=True, extend_to=10**12, **how), RecipeError)
    assert main(["train", "--resume", str(run), "--set", "train.epochs=3"]) == 2
    (run / "recipe.yaml").write_text(dump_recipe(recipe_of(base, train__epochs=3)), encoding="utf-8")
    assert "has 3 epochs and cannot be shortened to 2" in line(lambda: train(longer, resume=True, extend_to=2, **how))
    assert "extended" not in manifest(run)


def test_the_folder_alone_is_enough_to_go_on(
    base: RunFolder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe with what was set, data sets with `@all`, fold, device: all of it is known."""
    second = shutil.copytree(data, tmp_path / "Dataset002_More")
    for path in sorted(second.glob("*/case_*")):
        path.rename(path.with_name(path.name.replace("case", "more")))
    recipe = recipe_of(base, train__epochs=2, train__seed=5)
    given: dict[str, Any] = {"data": [data, f"{second}@all"], "fold": 1, "device": "cpu"}
    whole = train(recipe, out=tmp_path / "whole", **given)
    step, taken = Trainer.step, iter(range(100))

    def dies(self: Trainer, **batch: Tensor) -> dict[str, float]:
        if next(taken) == 3:
            raise KeyboardInterrupt
        return step(self, **batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=tmp_path / "parts", **given)
    moved = shutil.move(second, tmp_path / "elsewhere" / second.name)
    parts = tmp_path / "parts"
    assert f"'{second.name}'" not in line(lambda: zoo.train(resume=parts))
    assert "say with --data (data= in Python) where it is now" in line(lambda: zoo.train(resume=parts))
    assert "1 data sets given; give those of the run" in line(lambda: zoo.train(resume=parts, data=data), ArgumentError)
    assert zoo.train(resume=parts, data=[data, moved]) == parts
    assert all(torch.equal(weights(parts)[name], tensor) for name, tensor in weights(whole.path).items())
    assert manifest(parts)["environment"]["device"] == "cpu"
    assert main(["train", "--resume", str(parts), "--data", str(data), "--data", str(moved)]) == 0
    assert (parts / "evaluation.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        "--resume RUN",
        "--resume --out RUN",
        "--resume RUN --out RUN",
        "RECIPE --data DATA --out RUN --resume",
        "--resume RECIPE --data DATA --out RUN",
    ],
)
def test_every_way_to_ask_for_it(words: str, data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meant = {"RUN": run, "RECIPE": run / "recipe.yaml", "DATA": data}
    assert main(["train", *(str(meant.get(word, word)) for word in words.split())]) == 0
    assert "all 1 epochs are trained" in capsys.readouterr().err


def test_what_is_missing_is_said(data: Path, run: Path, tmp_path: Path) -> None:
    for call in (zoo.train, lambda: zoo.train("maskmed_phantom", out=run), lambda: zoo.train(resume=True)):
        assert "give RECIPE, --data and --out (recipe, data=, out=)" in line(call, ArgumentError)
    assert "two folders to go on in" in line(lambda: zoo.train(resume=run, out=tmp_path), ArgumentError)
    assert "nothing to resume, no recipe.yaml here" in line(lambda: zoo.train(resume=tmp_path))
    assert "fold 0, not 1" in line(lambda: zoo.train(resume=run, fold=1))
    assert "train.optimizer.lr was" in line(lambda: zoo.train(resume=run, train__optimizer__lr=1))
    (run / "manifest.json").unlink()
    assert "manifest.json: is missing" in line(lambda: zoo.train(resume=run))


@pytest.mark.parametrize("given", [["--fold", "all"], ["@all"]])
def test_every_case_trains_and_none_validates(
    given: list[str], base: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{data}@all" if given == ["@all"] else str(data)
    words = ["train", str(base.recipe_file), "--data", place, "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*words, *(given if given != ["@all"] else [])]) == 0
    kept = manifest(tmp_path / "run")
    assert (len(kept["training"]), kept["validation"], kept["dataset"]) == (4, [], f"{kept['data'][0]['name']}@all")
    assert "validation_dice" not in rows(tmp_path / "run")[0]
    assert capsys.readouterr().out == ""
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([*words[:-2], "--fold", "some"])
    assert "expected a whole number or 'all', got 'some'" in capsys.readouterr().err
