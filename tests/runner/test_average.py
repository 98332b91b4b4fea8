"""The average of the weights: that of a loop by hand, what is validated and kept, and the same after a resume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskmed_zoo.errors import CheckpointError, RecipeError
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner import checkpoint
from maskmed_zoo.runner.average import Average
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.start import load_init
from maskmed_zoo.runner.train import train
from maskmed_zoo.runner.trainer import Trainer
from tests.conftest import TINY, make_dataset
from tests.kill.harness import differences
from tests.runner import test_resume as resume
from tests.runner.two_processes import batch_of

CPU = torch.device("cpu")
DECAY = 0.35
"""Reached after four updates."""


def by_hand(weights: Iterable[Tensor], decay: float = DECAY) -> Tensor:
    """The average of what weights were after each step, in float64."""
    first, *others = (each.double() for each in weights)
    average = first
    for n, newest in enumerate(others, start=1):
        now = min(decay, (1 + n) / (10 + n))
        average = now * average + (1 - now) * newest
    return average


def flat(model: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in (*model.parameters(), *model.buffers())])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and the averaged run that is left alone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("average")
    (folder / "tiny.yaml").write_text(TINY)
    make_dataset(folder / "data")
    (folder / "whole").mkdir()
    resume.go(folder, folder / "whole" / "run", recipe=recipe_of(folder))
    return folder


def recipe_of(made: Path, **more: Any) -> Recipe:
    return resume.recipe_of(made, {"train.ema": DECAY} | {key.replace("__", "."): v for key, v in more.items()})


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert load_recipe(tmp_path / "tiny.yaml").train.ema is None
    for wrong in (0, 1, -0.1, True, "x", 999):
        with pytest.raises(RecipeError, match="ema"):
            load_recipe(tmp_path / "tiny.yaml", {"train.ema": wrong})


def test_is_that_of_a_loop_in_float64(tiny_recipe: Path) -> None:
    """Of the steps that were not skipped, each once however many pieces its batch has; frozen parts stay."""
    changes = {"train.ema": DECAY, "train.batch_size": 4, "train.accumulate": 2, "train.freeze": ["encoder"]}
    changes |= {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "model.neck.kind": "skip"}
    changes |= {"train.epochs": 9}
    trainer = Trainer(load_recipe(tiny_recipe, changes), CPU)
    average = trainer.average
    assert average is not None
    trainer.model.double()
    average.model.double()
    seen: list[Tensor] = []
    for step in range(8):
        batch = batch_of("plain", step)
        batch["image"] = batch["image"].double()
        if step in (0, 3):
            batch["image"][0] = torch.nan
        assert bool(trainer.step(**batch)) == (step not in (0, 3))
        if step not in (0, 3):
            seen.append(flat(trainer.model).clone())
        assert trainer.kept is (average.model if seen else trainer.model)
    assert average.updates == len(seen) == 6
    expected = by_hand(seen)
    assert float((expected - seen[-1]).norm()) > 1e-3
    torch.testing.assert_close(flat(average.model), expected, rtol=1e-12, atol=1e-14)
    for own, raw in zip(average.model.encoder.parameters(), trainer.model.encoder.parameters(), strict=True):
        assert torch.equal(own, raw)


class Small(nn.Module):
    """What the networks hold besides weights: running statistics, and whole numbers that are no count."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.register_buffer("index", torch.tensor([5, 7, 40_000_001]))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


@pytest.mark.parametrize("compiles", [False, True])
def test_buffers_of_a_network_that_is_perhaps_compiled(compiles: bool) -> None:
    torch.manual_seed(0)
    model = cast(Any, Small())
    if compiles:
        model.compile(backend="eager")
    average = Average(model, DECAY)
    seen: list[Tensor] = []
    for _ in range(6):
        model(torch.randn(8, 3) * 3 + 1).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        average.update(model)
        seen.append(torch.cat([model.norm.running_mean, model.norm.running_var, model.linear.weight.flatten()]))
    own = cast(Any, average.model)
    found = torch.cat([own.norm.running_mean, own.norm.running_var, own.linear.weight.flatten()])
    torch.testing.assert_close(found.double(), by_hand(seen).detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(own.index, model.index)
    assert own.norm.num_batches_tracked == 6
    x = torch.randn(4, 3)
    expected = nn.functional.linear(
        nn.functional.batch_norm(x, own.norm.running_mean, own.norm.running_var, own.norm.weight, own.norm.bias),
        own.linear.weight, own.linear.bias,
    )  # fmt: skip
    torch.testing.assert_close(own.eval()(x), expected)


def test_is_validated_and_kept_while_training_goes_on_from_the_newest(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of every epoch are those of the loop by hand, and Dice is theirs; the state has the newest too."""
    step, validate, seen, dice = Trainer.step, Trainer.validate, list[Tensor](), list[tuple[float, float]]()
    plain = resume.recipe_of(made)

    def stepped(self: Trainer, **batch: Any) -> dict[str, float]:
        found = step(self, **batch)
        seen.append(flat(self.model).clone())
        return found

    def validated(self: Trainer, batches: Any) -> Any:
        kept = [*batches]
        other = Trainer(plain, CPU)
        assert self.average is not None
        other.model.load_state_dict(self.average.model.state_dict())
        found = validate(self, kept)
        dice.append((found.dice, validate(other, kept).dice))
        torch.testing.assert_close(flat(other.model).double(), by_hand(seen), rtol=1e-4, atol=1e-6)
        return found

    monkeypatch.setattr(Trainer, "step", stepped)
    monkeypatch.setattr(Trainer, "validate", validated)
    run = resume.go(made, tmp_path / "run", recipe=recipe_of(made))
    assert len(dice) == 2
    assert all(own == other > 0 for own, other in dice)
    weights, state = load_file(run.weights_file("last")), torch.load(run.state_file, weights_only=True)
    assert state["ema"]["updates"] == resume.TOTAL
    assert all(torch.equal(state["ema"]["model"][name], tensor) for name, tensor in weights.items())
    assert torch.equal(
        torch.cat([state["model"][name].flatten() for name, _ in Trainer(plain, CPU).model.named_parameters()]),
        seen[-1],
    )
    assert not torch.equal(weights["head.decoder.queries.0"], state["model"]["head.decoder.queries.0"])


@pytest.mark.parametrize("cuts", [(0,), (1, 3, 5), (8,)])
def test_a_run_that_was_cut_off_ends_as_the_one_that_was_not(made: Path, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Within epochs and between; also its average bit for bit, in the state."""
    recipe, whole = recipe_of(made), RunFolder(made / "whole" / "run")
    for at in cuts:
        resume.cut(made, tmp_path / "run", at, recipe=recipe)
    run = resume.go(made, tmp_path / "run", recipe=recipe, resume=True)
    assert differences(whole, run) == []
    states = [torch.load(each.state_file, weights_only=True)["ema"] for each in (whole, run)]
    assert states[0]["updates"] == states[1]["updates"] == resume.TOTAL
    assert all(torch.equal(states[1]["model"][name], tensor) for name, tensor in states[0]["model"].items())


def test_begins_from_weights_of_others_and_goes_on_in_a_longer_run(made: Path, tmp_path: Path) -> None:
    """No trace is left of the fresh weights, which a decay of 0 cannot show: of a run in which no step was made."""
    source = RunFolder(made / "whole" / "run")
    trainer = Trainer(recipe_of(made), CPU)
    load_init(trainer, source.path)
    weights = load_file(source.weights_file("last"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.kept.state_dict().items())
    run = resume.go(made, tmp_path / "run", recipe=recipe_of(made, train__epochs=2), init=source.path)
    longer = train(run.recipe(), data=made / "data", out=run.path, device="cpu", resume=True, extend_to=3)
    assert torch.load(longer.state_file, weights_only=True)["ema"]["updates"] == 9


DAMAGES: list[tuple[str, Any]] = [
    ("ema", None), ("ema", KeyError), ("ema", 3), ("ema/updates", 10), ("ema/updates", -1), ("ema/updates", True),
    ("ema/updates", KeyError), ("ema/model", None), ("ema/model", {"x": 1}),
]  # fmt: skip


def loaded(run: RunFolder, recipe: Recipe) -> object:
    return checkpoint.load(run, Trainer(recipe, CPU))


def test_a_state_of_another_recipe_or_damaged_is_one_line(made: Path, tmp_path: Path) -> None:
    from tests.runner.test_records import deep

    recipe, plain = recipe_of(made, train__epochs=1), resume.recipe_of(made, {"train.epochs": 1})
    run = resume.go(made, tmp_path / "run", recipe=recipe, resume=False)
    run.previous_state_file.unlink()
    whole = torch.load(run.state_file, weights_only=True)
    with pytest.raises(CheckpointError, match=r"another recipe: train.ema was 0.35, now None"):
        train(plain, data=made / "data", out=run.path, device="cpu", resume=True)
    with pytest.raises(CheckpointError, match=r"cannot be continued from \('ema' is there, and train.ema is None"):
        loaded(run, plain)
    for path, value in DAMAGES:
        state = torch.load(run.state_file, weights_only=True) | {"ema": dict(whole["ema"])}
        deep(state, path, value)
        torch.save(state, run.state_file)
        with pytest.raises(CheckpointError, match=r"state_last\.pt: ") as caught:
            loaded(run, recipe)
        assert "\n" not in str(caught.value), path
    name = next(iter(whole["ema"]["model"]))
    for tensor in (torch.zeros(1), torch.full_like(whole["ema"]["model"][name], torch.nan)):
        torch.save(whole | {"ema": {"updates": 1, "model": whole["ema"]["model"] | {name: tensor}}}, run.state_file)
        with pytest.raises(CheckpointError, match=f"'{name}' "):
            loaded(run, recipe)
    torch.save(whole, run.state_file)
    loaded(run, recipe)
