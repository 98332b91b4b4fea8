"""Our augmentation against nnU-Net's own: how often each step happens, and how its parameters are distributed.

Draws the same number of patches from both, notes what each step is called with, and compares: probabilities with their
95 % intervals and a two-proportion test, distributions of parameters with the two-sample Kolmogorov-Smirnov test. Wants
`nnunetv2`. A row is 'equal' where its test has p > 0.0001.

    python docs/benchmarks/policy.py --draws 20000 --csv docs/benchmarks/policy.csv
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.stats import ks_2samp, norm

from maskmed_zoo.data.augmentation import intensity, mirror, nnunet, separable
from maskmed_zoo.settings import Size3

CHANNELS = 2
PATCHES: dict[str, tuple[Size3, tuple[float, float, float]]] = {
    "isotropic": ((8, 10, 9), (1.0, 1.0, 1.0)),
    "anisotropic": ((4, 14, 12), (5.0, 1.0, 1.0)),
}
LEAST_P = 1e-4
"""With 68 rows, one comparison in 150 of equal policies has a row below it."""
Name = tuple[str, str]
Row = dict[str, Any]


@dataclass
class Draws:
    """How often each step happened in how many patches, and the values of its parameters by name."""

    count: int
    happened: Counter[str] = field(default_factory=Counter)
    chances: Counter[str] = field(default_factory=Counter)
    values: dict[Name, list[float]] = field(default_factory=lambda: defaultdict(list))

    def step(self, name: str, *, happened: bool, chances: int = 1) -> None:
        """Note one chance for a step."""
        self.happened[name] += int(happened)
        self.chances[name] += chances

    def turned(self, matrix: Any) -> None:
        """Note rotation and zoom of a matrix (n n), None for neither."""
        dims = 3 if matrix is None else len(matrix)
        zoom = 1.0 if matrix is None else np.linalg.det(matrix) ** (1 / dims)
        rotation = np.eye(dims) if matrix is None else np.asarray(matrix) / zoom
        self.step("zoom", happened=abs(zoom - 1) > 1e-9)
        self.step("rotation", happened=not np.allclose(rotation, np.eye(dims), atol=1e-9))
        if abs(zoom - 1) > 1e-9:
            self.values["zoom", "factor"].append(zoom)
        if not np.allclose(rotation, np.eye(dims), atol=1e-9):
            angles = [math.atan2(rotation[1, 0], rotation[0, 0])]
            if dims == 3:
                angles += [math.asin(-rotation[2, 0]), math.atan2(rotation[2, 1], rotation[2, 2])]
            for axis, angle in enumerate(reversed(angles)):
                self.values["rotation", f"degrees about axis {axis}"].append(math.degrees(angle))

    def factors(self, name: str, values: list[float]) -> None:
        """Note the factors of both channels, and how far apart they are."""
        self.values[name, "factor"].extend(values)
        self.values[name, "difference of channels"].append(values[0] - values[1])


STEPS = ["noise", "blur", "brightness", "contrast", "low resolution", "gamma, inverted", "gamma"]
"""nnU-Net's order, behind its spatial transform."""


def theirs(name: str, draws: int, seed: int) -> Draws:
    """What nnU-Net's training transforms draw."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    patch, _ = PATCHES[name]
    is_flat = name == "anisotropic"
    limit = math.pi if is_flat else math.radians(30)
    transforms = nnUNetTrainer.get_training_transforms(patch, (-limit, limit), None, (0, 1, 2), is_flat).transforms
    found = Draws(draws)
    spatial = transforms[1 if is_flat else 0]
    rest = transforms[3 if is_flat else 1 :]
    _note(spatial, lambda p: found.turned(p["affine"]))
    for step, random in zip(STEPS, rest, strict=False):
        _note(random, lambda p, step=step: found.step(step, happened=p["apply_transform"]))
        _note(random.transform, lambda p, step=step: _their_parameters(found, step, p))
    _note(rest[len(STEPS)], lambda p: [found.step(f"mirror {a}", happened=a in p["axes"]) for a in range(3)])
    size = nnunet.NNUNet(*PATCHES[name]).box
    image = torch.randn(CHANNELS, *size)
    labels = torch.zeros((1, *size), dtype=torch.int16)
    for _ in range(draws):
        data: dict[str, Any] = {"image": image.clone(), "segmentation": labels.clone()}
        for transform in transforms:
            data = transform(**data)
    return found


def _note(transform: Any, tell: Callable[[dict[str, Any]], Any]) -> None:
    original = transform.get_parameters

    def noting(**data: Any) -> Any:
        parameters = original(**data)
        tell(parameters)
        return parameters

    transform.get_parameters = noting


def _their_parameters(found: Draws, step: str, drawn: dict[str, Any]) -> None:
    if step == "noise":
        found.values[step, "standard deviation"].append(float(drawn["sigmas"]))
    elif step == "blur":
        _channels(found, step, int(drawn["apply_to_channel"].sum()))
        for sigmas in drawn["sigmas"]:
            _sigmas(found, sigmas)
    elif step == "low resolution":
        _channels(found, step, len(drawn["apply_to_channel"]))
        for scales in drawn["scales"]:
            _scales(found, scales.tolist())
    else:
        found.factors(step, (drawn["gamma"] if "gamma" in step else drawn["multipliers"]).tolist())


def _channels(found: Draws, step: str, count: int) -> None:
    found.happened[f"{step}, each channel"] += count
    found.chances[f"{step}, each channel"] += CHANNELS


def _sigmas(found: Draws, sigmas: Any) -> None:
    for axis, sigma in enumerate(sigmas):
        found.values["blur", f"sigma along axis {axis}"].append(float(sigma))
    found.values["blur", "difference of axes"].append(float(sigmas[1] - sigmas[2]))


def _scales(found: Draws, scales: list[float]) -> None:
    for axis, scale in enumerate(scales):
        found.values["low resolution", f"scale along axis {axis}"].append(scale)
    found.values["low resolution", "difference of axes"].append(scales[1] - scales[2])


def ours(name: str, draws: int, seed: int) -> Draws:
    """What our policy draws, noted where each step is applied."""
    policy, rng, found = nnunet.NNUNet(*PATCHES[name]), np.random.default_rng(seed), Draws(draws)
    image = torch.randn(CHANNELS, *policy.box)
    labels = np.zeros((1, *policy.box), np.int16)
    marker = np.arange(8).reshape(1, 2, 2, 2)

    def read(start: Size3, size: Size3) -> tuple[torch.Tensor, Any]:
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        return image[(slice(None), *box)].clone(), labels[(slice(None), *box)]

    with _noted() as called:
        for _ in range(draws):
            called.clear()
            patch, _maps = policy.take(read, (0, 0, 0), rng)
            _, flipped = mirror(policy.change(patch, rng), marker, ("z", "y", "x"), rng)
            _our_parameters(found, called, policy)
            for axis, step in enumerate((4, 2, 1)):
                found.step(f"mirror {axis}", happened=bool(flipped.flat[0] & step))
    return found


@contextlib.contextmanager
def _noted() -> Generator[dict[str, list[Any]]]:
    """Calls of every step, their arguments or what came of them, by name of the function."""
    called: dict[str, list[Any]] = defaultdict(list)
    places: list[tuple[Any, str]] = [
        (nnunet, "draw_matrix"), (nnunet, "blur"), (nnunet, "low_resolution"), (intensity, "apply_noise"),
        (intensity, "apply_brightness"), (intensity, "apply_contrast"), (intensity, "apply_gamma"),
        (separable, "apply_blur"), (separable, "apply_low_resolution"),
    ]  # fmt: skip
    originals = [(module, name, getattr(module, name)) for module, name in places]

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            result = original(*args, **keywords)
            called[name].append(result if name == "draw_matrix" else (args[1], keywords))
            return result

        return call

    for module, name, original in originals:
        setattr(module, name, noting(name, original))
    try:
        yield called
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _our_parameters(found: Draws, called: dict[str, list[Any]], policy: nnunet.NNUNet) -> None:
    (matrix,) = called["draw_matrix"]
    if matrix is not None and policy.in_plane:
        kept = [axis for axis in range(3) if axis != policy.coarsest]
        matrix = matrix[np.ix_(kept, kept)]
    found.turned(matrix)
    found.step("noise", happened=bool(called["apply_noise"]))
    found.values["noise", "standard deviation"] += [std for std, _ in called["apply_noise"]]
    for step, drawn, applied, note in (
        ("blur", "blur", "apply_blur", _sigmas),
        ("low resolution", "low_resolution", "apply_low_resolution", _scales),
    ):
        found.step(step, happened=bool(called[drawn]))
        if called[drawn]:
            _channels(found, step, len(called[applied]))
        for values, _ in called[applied]:
            note(found, values)
    gammas = {
        inverted: [v for v, k in called["apply_gamma"] if k["inverted"] == inverted] for inverted in (True, False)
    }
    for step, values in (
        ("brightness", [v for v, _ in called["apply_brightness"]]),
        ("contrast", [v for v, _ in called["apply_contrast"]]),
        ("gamma, inverted", gammas[True]),
        ("gamma", gammas[False]),
    ):
        found.step(step, happened=bool(values))
        if values:
            found.factors(step, values)


def compared(name: str, draws: int, seed: int = 0) -> list[Row]:
    """Rows of the comparison for a kind of patch."""
    one, other = ours(name, draws, seed), theirs(name, draws, seed)
    rows: list[Row] = []
    for step in one.chances:
        numbers = [(d.happened[step], d.chances[step]) for d in (one, other)]
        shares = [k / n for k, n in numbers]
        p = _two_proportions(*numbers[0], *numbers[1])
        intervals = ["{:.4f} … {:.4f}".format(*_wilson(k, n)) for k, n in numbers]
        rows.append({
            "patch": name, "step": step, "what": "probability", "n_ours": numbers[0][1], "n_theirs": numbers[1][1],
            "ours": round(shares[0], 4), "ours_95": intervals[0], "theirs": round(shares[1], 4),
            "theirs_95": intervals[1], "ks_distance": "", "p": round(p, 4), "verdict": _verdict(p),
        })  # fmt: skip
    for key in one.values:
        pair = [np.asarray(d.values[key]) for d in (one, other)]
        test = ks_2samp(*pair)
        ranges = [f"{np.min(v):.3f} … {np.max(v):.3f}" for v in pair]
        rows.append({
            "patch": name, "step": key[0], "what": key[1], "n_ours": len(pair[0]), "n_theirs": len(pair[1]),
            "ours": round(float(pair[0].mean()), 4), "ours_95": ranges[0], "theirs": round(float(pair[1].mean()), 4),
            "theirs_95": ranges[1], "ks_distance": round(float(test.statistic), 4),
            "p": round(float(test.pvalue), 4), "verdict": _verdict(float(test.pvalue)),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["what"] != "probability", row["step"], row["what"]))


def _verdict(p: float) -> str:
    return "equal" if p > LEAST_P else "different"


def _wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return middle - half, middle + half


def _two_proportions(a: int, m: int, b: int, n: int) -> float:
    share = (a + b) / (m + n)
    deviation = math.sqrt(share * (1 - share) * (1 / m + 1 / n))
    return 1.0 if deviation == 0 else 2 * float(norm.sf(abs(a / m - b / n) / deviation))


def main() -> None:
    """Draw, compare, write."""
    import measure

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"draws": args.draws, "seed": args.seed}
    rows = [row | facts for name in PATCHES for row in compared(name, args.draws, args.seed)]
    measure.write(args.csv, rows)
    for row in rows:
        print(f"{row['patch']:12} {row['step']:30} {row['what']:26} {row['ours']:9} {row['theirs']:9} {row['verdict']}")


if __name__ == "__main__":
    main()
