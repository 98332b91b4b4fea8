"""What to try when a run has diverged, and what is left of it."""

from __future__ import annotations

from maskmed_zoo.errors import NonFiniteError
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.trainer import Trainer


def diverged(error: NonFiniteError, trainer: Trainer, run: RunFolder, step: int) -> NonFiniteError:
    """The error that ends a run whose last state is that after so many steps."""
    optimizer = trainer.recipe.train.optimizer
    tries = [f"a lower train.optimizer.lr ({optimizer.lr:g})"]
    tries += [f"a longer train.optimizer.warmup_iterations ({optimizer.warmup_iterations})"]
    tries += [f"a lower train.optimizer.gradient_clip ({optimizer.gradient_clip:g})"]
    tries += [] if trainer.dtype is None else ["train.amp=off"]
    if run.has_state():
        best = run.weights_file("best")
        kept = f"{run.state_file} is of step {step}" + (f", {best} are the best weights" if best.is_file() else "")
    else:
        kept = "no state was saved before"
    return NonFiniteError(
        f"{error}; training has diverged; begin anew with {', '.join(tries[:-1])} or {tries[-1]}; {kept}"
    )
