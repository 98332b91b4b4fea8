"""Why these intervals: the ones that `evaluate` and `compare` use beside others, on the scenes of `intervals.py`.

Of a mean and of a difference with one run each, the truth being the networks': Student's t, the percentile bootstrap,
BCa (Efron 1987), the studentized bootstrap, and Student's t with Hall's correction of skewness (1992). Of a difference
with three runs each that differ as the scene says, the truth being the methods': Student's t over the cases' means over
runs, a bootstrap that draws cases and runs, and mean squares of both levels with Satterthwaite's degrees of freedom.
All are written out here for many samples at once, but for the last, which is the package's. A row is the share of 95 %
intervals that hold the truth, with their median width, and their largest.
`difference` is that of two equal methods, whose differences are symmetric; `shifted` that to one that is better, whose
are not.

    python docs/benchmarks/intervals_others.py --simulations 2000 --csv docs/benchmarks/intervals_others.csv
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from intervals import BETTER, SCENES, World
from measure import Row, write
from scipy.special import ndtr, ndtri, stdtrit
from scipy.stats import skew

from maskmed_zoo.evaluation.statistics.paired import PairedDifference, paired_difference

CASES, RUNS, RESAMPLES = (10, 25, 100), 3, 1000
Ends = tuple[np.ndarray, np.ndarray]


def single(values: np.ndarray, random: np.random.Generator) -> dict[str, Ends]:
    """Five intervals of the mean of each row of values (samples, cases)."""
    cases = values.shape[1]
    mean, error = values.mean(1), values.std(1, ddof=1) / cases**0.5
    shares = random.multinomial(cases, np.full(cases, 1 / cases), RESAMPLES).T / cases
    means = values @ shares
    errors = np.sqrt(np.maximum(values**2 @ shares - means**2, 0) / (cases - 1))
    width = stdtrit(cases - 1, 0.975) * error
    shift = means - mean[:, None]
    ratios = np.divide(shift, errors, out=np.copysign(np.inf, shift), where=errors > 1e-12)
    low, high = np.quantile(ratios, (0.025, 0.975), axis=1, method="inverted_cdf")
    return {
        "student": (mean - width, mean + width),
        "percentile": tuple(np.quantile(means, (0.025, 0.975), axis=1)),
        "bca": accelerated(values, np.sort(means, axis=1)),
        "studentized": (mean - high * error, mean - low * error),
        "hall": corrected(values, mean, error),
    }


def corrected(values: np.ndarray, mean: np.ndarray, error: np.ndarray) -> Ends:
    """Hall's, of samples that are skewed."""
    cases = values.shape[1]
    k = skew(values, axis=1) / cases**0.5
    ends = [3 / k * (np.cbrt(1 + k * (sign * stdtrit(cases - 1, 0.975) - k / 6)) - 1) for sign in (1, -1)]
    return mean - error * ends[0], mean - error * ends[1]


def accelerated(values: np.ndarray, means: np.ndarray) -> Ends:
    """BCa, from sorted means of resamples (samples, resamples)."""
    mean = values.mean(1, keepdims=True)
    deviation = mean - values
    acceleration = (deviation**3).sum(1) / (6 * (deviation**2).sum(1) ** 1.5)
    bias = ndtri(np.clip((means < mean).mean(1), 0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES))
    ends: list[np.ndarray] = []
    for z in ndtri((0.025, 0.975)):
        level = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        ends.append(means[np.arange(len(means)), np.clip(level * RESAMPLES, 0, RESAMPLES - 1).astype(int)])
    return ends[0], ends[1]


def several(first: np.ndarray, second: np.ndarray, random: np.random.Generator) -> dict[str, Ends]:
    """Three intervals of the difference of each pair of samples (samples, runs, cases)."""
    difference = first.mean(1) - second.mean(1)
    cases, mean = difference.shape[1], difference.mean(1)
    width = stdtrit(cases - 1, 0.975) * difference.std(1, ddof=1) / cases**0.5
    drawn = np.empty((RESAMPLES, len(first)))
    for row in drawn:
        share = random.multinomial(cases, np.full(cases, 1 / cases)) / cases
        sides = [side[:, random.integers(0, RUNS, RUNS)].mean(1) @ share for side in (first, second)]
        row[:] = sides[0] - sides[1]
    ours = [(pair and pair.interval) or (np.nan, np.nan) for pair in map(paired, first, second)]
    return {
        "cases alone": (mean - width, mean + width),
        "bootstrap of cases and runs": tuple(np.quantile(drawn, (0.025, 0.975), axis=0)),
        "mean squares": (np.array(ours)[:, 0], np.array(ours)[:, 1]),
    }


def paired(first: np.ndarray, second: np.ndarray) -> PairedDifference | None:
    """The package's, of (runs, cases)."""
    ours, theirs = ([{str(case): float(dice) for case, dice in enumerate(run)} for run in x] for x in (first, second))
    return paired_difference(ours, theirs)


def rows_of(name: str, cases: int, simulations: int) -> list[Row]:
    """Every interval in one scene."""
    random, scene = np.random.default_rng([cases, 1]), SCENES[name]
    quiet, loud = World.of(scene, 0.0), World.of(scene, scene.run)
    one = np.stack([quiet.draw(random, cases, 1)[0][:2, 0] for _ in range(simulations)])
    many = np.stack([loud.draw(random, cases, RUNS)[0][:2] for _ in range(simulations)])
    better = np.stack([quiet.draw(random, cases, 1)[0][[-1, 0], 0] for _ in range(simulations)])
    several_better = np.stack([loud.draw(random, cases, RUNS)[0][[-1, 0]] for _ in range(simulations)])
    shifts = [world.method(BETTER) - world.method(0) for world in (quiet, loud)]
    found = {
        ("mean", 1): (single(one[:, 0], random), quiet.method(0)),
        ("difference", 1): (single(one[:, 0] - one[:, 1], random), 0.0),
        ("difference", RUNS): (several(many[:, 0], many[:, 1], random), 0.0),
        ("shifted", 1): (single(better[:, 0] - better[:, 1], random), shifts[0]),
        ("shifted", RUNS): (several(several_better[:, 0], several_better[:, 1], random), shifts[1]),
    }
    return [
        {"scene": name, "cases": cases, "of": of, "runs": runs, "interval": interval, "simulations": simulations}
        | {"holds": f"{np.mean((low <= truth) & (truth <= high)):.3f}"}
        | {"width": f"{np.median(high - low):.4f}", "widest": f"{np.max(high - low):.4f}"}
        for (of, runs), (intervals, truth) in found.items()
        for interval, (low, high) in intervals.items()
    ]


def main() -> None:
    """Scene after scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, metavar="N", help="per row (default: %(default)s)")
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    write(args.csv, [row for name, cases in product(SCENES, CASES) for row in rows_of(name, cases, args.simulations)])


if __name__ == "__main__":
    main()
