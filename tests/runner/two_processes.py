"""What two processes compute together, and one alone, for `test_processes`; run as a module it is one of the two.

`torchrun --nproc-per-node 2 -m tests.runner.two_processes FOLDER` writes FOLDER/0.pt and 1.pt.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maskmed_zoo import distributed, registry
from maskmed_zoo.cli.main import main
from maskmed_zoo.contracts import Head
from maskmed_zoo.data.patches import Patch
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.trainer import Trainer, Validation

CPU = torch.device("cpu")
IGNORE = 3
LOSSES = {
    "logits": {"ce_dice": "model.loss={kind: ce_dice}"},
    "queries": {
        "once": "model.loss={kind: set_criterion, no_object_weight: 0.3}",
        "fixed": "model.loss={kind: set_criterion, assigner: fixed}",
        "semantic": "model.loss={kind: set_criterion, semantic_weight: 5}",
        "per_stage": "model.loss={kind: set_criterion, match: per_stage, stage_weighting: equal}",
    },
}
VARIANTS = ("plain", "partial", "ignore", "instances")
STEPS = 20
"""Of each of three parts of a training run."""


def cases() -> list[tuple[str, str, str]]:
    """Head, loss and variant of labels, all that fit together."""
    found: list[tuple[str, str, str]] = []
    for name in registry.names("head"):
        head = registry.component(name, "head")
        assert issubclass(head, Head)
        for loss in LOSSES[head.gives]:
            found += [(name, loss, variant) for variant in VARIANTS if (loss, variant) != ("fixed", "instances")]
    return found


def trainer_of(folder: Path, head: str, loss: str, variant: str, accumulate: int = 1) -> Trainer:
    """The trainer of the tiny recipe with another head, in batches of four."""
    gives = registry.component(head, "head").gives  # type: ignore[attr-defined]
    changes = [f"model.head={{kind: {head}}}", LOSSES[gives][loss], "train.batch_size=4"]
    changes += [
        f"train.accumulate={accumulate}",
        "train.optimizer.warmup_iterations=0",
        "train.ema=0.95",
        "train.iterations_per_epoch=60",
    ]
    if variant == "ignore":
        changes.append(f"data.labels={{background: 0, left: 1, right: 2, ignore: {IGNORE}}}")
    return Trainer(load_recipe(folder / "tiny.yaml", changes), CPU)


def batch_of(variant: str, step: int = 0) -> dict[str, Tensor]:
    """Four samples that count differently: of one label, of two, of three, and of one, many ids or ignored voxels."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.zeros(4, 8, 16, 16, dtype=torch.int64)
    labels[1, 2:6, 3:9, 2:7] = 1
    labels[2, 1:5, 8:14, 8:14] = 2
    labels[2, 2:7, 1:6, 1:6] = 1
    image = 0.5 * torch.randn(4, 1, 8, 16, 16, generator=generator) + labels[:, None]
    batch = {"image": image, "labels": labels}
    if variant == "partial":
        batch["annotated"] = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 1]]).bool()
    if variant == "ignore":
        labels[0], labels[3, :6], labels[1, :, :2] = IGNORE, IGNORE, IGNORE
    if variant == "instances":
        labels[3, 1:7, 2:14, 2:14] = 1
        columns = torch.arange(16).expand_as(labels)
        batch["instances"] = torch.where(labels > 0, 1 + columns // 4, 0)
    return batch


def gradients(trainer: Trainer, batch: dict[str, Tensor]) -> tuple[dict[str, float], Tensor]:
    """Loss and parts, and all gradients in one row, in float64; zeros where there is none."""
    trainer.model.double().train()
    trainer.optimizer.zero_grad(set_to_none=True)
    values = trainer.gradients(**(batch | {"image": batch["image"].double()}))
    rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.model.parameters()]
    return {name: float(value) for name, value in values.items()}, torch.cat([row.flatten() for row in rows])


def own(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """This process's share."""
    return {name: tensor[distributed.rank() :: distributed.size()] for name, tensor in batch.items()}


def trained(trainer: Trainer, steps: Iterable[int], *, backwards: bool = False) -> Trainer:
    """The trainer after some steps on different batches, perhaps with their samples in reversed order."""
    for step in steps:
        batch = own(batch_of("plain", step))
        assert trainer.step(**({name: tensor.flip(0) for name, tensor in batch.items()} if backwards else batch))
    return trainer


def learner(folder: Path, accumulate: int = 1) -> Trainer:
    """What is trained: a query head with the set criterion."""
    return trainer_of(folder, "masked_query", "once", "plain", accumulate)


def weights(trainer: Trainer) -> Tensor:
    """Those that are trained, and their average."""
    return torch.cat([p.detach().flatten() for p in (*trainer.model.parameters(), *trainer.kept.parameters())])


def _skipped(folder: Path, rank: int) -> tuple[dict[str, float], str, bool]:
    """A step that is not finite in process 1 alone: what it gives and says here, and whether the weights stay."""
    trainer, said = learner(folder), list[str]()
    trainer.say, before = said.append, weights(trainer)
    batch = own(batch_of("plain"))
    if rank:
        batch["image"][:] = torch.nan
    return trainer.step(**batch), said[0], torch.equal(weights(trainer), before)


def _validated(folder: Path) -> float:
    trainer = learner(folder, accumulate=2)
    batches: Any = [own(batch_of("plain", step) | {"annotated": torch.ones(4, 3).bool()}) for step in range(3)]
    return trainer.validate(batches).dice


def command(folder: Path, out: str, *more: str) -> int | str:
    """The exit code of `train` on the data set in the folder."""
    words = ["train", str(folder / "tiny.yaml"), "--data", str(folder / "Dataset001_Boxes"), "--device", "cpu"]
    try:
        return main([*words, "--out", str(folder / out), *more])
    except SystemExit as error:
        return f"silent {error.code}"


def _ends_early(folder: Path) -> list[int | str]:
    """The epochs that are validated of a run whose Dice falls, and the exit codes of it and of the same once more."""
    validate, found = Trainer.validate, list[int | str]()

    def falls(self: Trainer, batches: Iterable[Patch]) -> Validation:
        found.append(f"epoch {self.iteration // 3}")
        return validate(self, batches)._replace(dice=1 / self.iteration)

    Trainer.validate = falls  # type: ignore[method-assign]
    words = ["--set", "train.patience=2", "--set", "train.epochs=8"]
    found += [command(folder, "early", *words)]
    found += [command(folder, "early", *words, "--resume")]
    Trainer.validate = validate  # type: ignore[method-assign]
    return found


def run(folder: Path) -> None:
    """All of it; the command that is refused comes last, because process 0 does not answer afterwards."""
    torch.set_num_threads(1)
    distributed.join()
    rank, result = distributed.rank(), dict[str, Any]()
    for accumulate in (1, 2):
        for case in cases():
            result[str((*case, accumulate))] = gradients(trainer_of(folder, *case, accumulate), own(batch_of(case[2])))
    result["skipped"], result["dice"] = _skipped(folder, rank), _validated(folder)
    result["words"] = (distributed.gathered(rank), distributed.from_first(rank))
    result["train"], result["early"] = command(folder, "together"), _ends_early(folder)
    trainer = trained(learner(folder), range(STEPS))
    if not rank:
        torch.save(trainer.state(), folder / "after_two.pt")
    result["60"] = weights(trained(trainer, range(STEPS, 3 * STEPS)))
    distributed.wait()
    dist.destroy_process_group()
    if not rank:  # alone for a while
        trainer = learner(folder)
        trainer.load_state(torch.load(folder / "after_two.pt", weights_only=True))
        torch.save(trained(trainer, range(STEPS, 2 * STEPS)).state(), folder / "alone.pt")
        (folder / "alone.pt").replace(folder / "after_one.pt")
    while not (folder / "after_one.pt").exists():
        time.sleep(0.1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'again'}", rank=rank, world_size=2)
    distributed._Group.words = None
    trainer = learner(folder)
    trainer.load_state(torch.load(folder / "after_one.pt", weights_only=True))
    result["2-1-2"] = weights(trained(trainer, range(2 * STEPS, 3 * STEPS)))
    result["refused"] = command(folder, "together")
    torch.save(result, folder / f"{rank}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
