"""Do the intervals of `evaluate` and `compare` hold what they say, and how often do equal methods differ by chance?

Three methods that are equal, apart from chance, are simulated on the same cases, as often as the column
`simulations` says, and their made-up Dice goes through the package's own functions. A score is the logistic of

    level + case + case x method + run + case x run

with a skewed share of the cases, so that a few are hard, and in two of three scenes some structures missed (Dice 0):

* `even`: as the hippocampus in `nnunet_parity.csv` (mean .86, standard deviation .04 over cases, .95 between methods);
* `hard`: an organ with failures (mean .79, standard deviation .19, 2 % missed);
* `lesion`: small targets (mean .54, standard deviation .29, 8 % missed).

Runs differ by what `run_sd` says, in the logistic's units: 0, or a standard deviation of mean Dice of about .004, .01
and .03. The columns:

* `mean_networks`, `mean_methods`: share of the 95 % intervals of a mean that hold the mean over all cases of these very
  networks, or of the method, whose other runs would be other networks;
* `difference_networks`, `difference_methods`: the same of the paired difference;
* `shifted_methods`: of the difference to a fourth method, which is better by half a unit;
* `mean_width`, `difference_width`: median width of both intervals;
* `signed_rank`: share of simulations in which Wilcoxon's test, corrected by Holm over the three pairs, tells at
  least one pair of the three equal methods apart; where `run_sd` is 0 the networks are equal too, and it should be 5 %
  or less;
* `methods`: the same of the test over cases and runs; none for one run.

For cases of which there are too few for the interval of a mean, its columns are empty. Every case is a patient of its
own: patients of several cases are not simulated.

    python docs/benchmarks/intervals.py --csv docs/benchmarks/intervals.csv
    python docs/benchmarks/intervals.py --lowest docs/benchmarks/intervals.csv

One core takes ten minutes for a thousand simulations. Random numbers are the same in every call. The second line prints
what `maskmed_zoo/evaluation/statistics/coverage.py` tells users: the lowest shares over all scenes.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
from measure import Row, write
from scipy.special import expit

from maskmed_zoo.evaluation.metrics import DEFAULT, metrics
from maskmed_zoo.evaluation.statistics.holm import LEVEL, holm
from maskmed_zoo.evaluation.statistics.interval import FEWEST, mean_interval
from maskmed_zoo.evaluation.statistics.paired import paired_difference

METHODS = 3
BETTER = 0.5
"""Of the fourth method, in the logistic's units."""
CASES, SEEDS = (5, 10, 25, 100), (1, 2, 3, 5)
COLUMNS = (
    *("mean_networks", "mean_methods", "mean_width"),
    *("difference_networks", "difference_methods", "difference_width", "shifted_methods", "signed_rank", "methods"),
)


@dataclass(frozen=True)
class Scene:
    """Standard deviations in the logistic's units; `shape` of the gamma distribution that cases come from."""

    level: float
    case: float
    shape: float
    method: float
    run: float
    residual: float
    missed: float


SCENES = {
    "even": Scene(1.85, 0.29, 4, 0.05, 0.03, 0.05, 0),
    "hard": Scene(1.6, 0.9, 2, 0.25, 0.08, 0.25, 0.02),
    "lesion": Scene(0.6, 1.2, 3, 0.4, 0.15, 0.4, 0.08),
}


@dataclass(frozen=True)
class World:
    """A scene with runs that differ by `run_sd`, and what a network's mean over all cases is by its own effect."""

    scene: Scene
    run_sd: float
    effects: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, scene: Scene, run_sd: float) -> World:
        draws = np.random.default_rng(7).gamma(scene.shape, 1, 200_000), np.random.default_rng(8).normal(size=200_000)
        noise = np.hypot(scene.method, scene.residual) * draws[1]
        inner = scene.level - scene.case * (draws[0] - scene.shape) / scene.shape**0.5 + noise
        effects = np.linspace(-5 * scene.run, BETTER + 5 * scene.run, 41)
        means = np.array([(1 - scene.missed) * expit(inner + effect).mean() for effect in effects])
        return cls(scene, run_sd, effects, means)

    def network(self, effect: np.ndarray) -> np.ndarray:
        """Mean over all cases of networks with these effects."""
        return np.interp(effect, self.effects, self.means)

    def method(self, better: float) -> float:
        """The same of a method: over all of its runs."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(21)
        return float(self.network(better + self.run_sd * nodes) @ weights / weights.sum())

    def draw(self, random: np.random.Generator, cases: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (methods, runs, cases), the last method better, and the mean of each network (methods, runs)."""
        scene, methods = self.scene, METHODS + 1
        hard = (random.gamma(scene.shape, 1, cases) - scene.shape) / scene.shape**0.5
        effect = self.run_sd * random.normal(size=(methods, seeds))
        effect[-1] += BETTER
        x = scene.level - scene.case * hard + effect[:, :, None]
        x = x + scene.method * random.normal(size=(methods, 1, cases))
        scores = expit(x + scene.residual * random.normal(size=(methods, seeds, cases)))
        return np.where(random.random(scores.shape) < scene.missed, 0.0, scores), self.network(effect)


def row_of(world: World, cases: int, seeds: int, simulations: int) -> Row:
    """Shares over the simulations of one cell."""
    random = np.random.default_rng([cases, seeds])
    truth, shift = world.method(0), world.method(BETTER) - world.method(0)
    hits: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    limits = metrics()[DEFAULT].limits

    def held(name: str, interval: tuple[float, float] | None, value: float) -> None:
        if interval is not None:
            hits.setdefault(name, []).append(interval[0] <= value <= interval[1])

    def wide(name: str, interval: tuple[float, float] | None) -> None:
        if interval is not None:
            widths.setdefault(name, []).append(interval[1] - interval[0])

    for _ in range(simulations):
        table, networks = world.draw(random, cases, seeds)
        named = [[{str(case): float(dice) for case, dice in enumerate(run)} for run in method] for method in table]
        interval = mean_interval(named[0], within=limits)
        wide("mean_width", interval)
        held("mean_networks", interval, float(networks[0].mean()))
        held("mean_methods", interval, truth)
        pairs = [paired_difference(named[a], named[b]) for a, b in combinations(range(METHODS), 2)]
        found = [pair for pair in pairs if pair is not None]
        wide("difference_width", found[0].interval)
        held("difference_networks", found[0].interval, float(networks[0].mean() - networks[1].mean()))
        held("difference_methods", found[0].interval, 0.0)
        better = paired_difference(named[-1], named[0])
        held("shifted_methods", better and better.interval, shift)
        for name, p_values in (("signed_rank", [p.p for p in found]), ("methods", [p.p_methods for p in found])):
            corrected = [p for p in holm(p_values) if p is not None]
            hits.setdefault(name, []).append(any(p < LEVEL for p in corrected))
    shares = {name: f"{np.mean(values):.3f}" for name, values in hits.items()}
    shares |= {name: f"{np.median(values):.4f}" for name, values in widths.items()}
    return dict.fromkeys(COLUMNS, "") | shares | ({} if seeds > 1 else {"methods": ""})


def lowest(rows: list[Row]) -> tuple[dict[str, dict[int, dict[int, float]]], dict[int, float]]:
    """Lowest coverage by kind, cases and seeds, and by cases how often at least one of three pairs of
    single runs of equal methods is told apart.

    Of one run the truth is that of the networks, of several that of the methods.
    """
    measured: dict[str, dict[int, dict[int, float]]] = {"mean": {}, "difference": {}}
    one_run: dict[int, float] = {}
    for row in rows:
        cases, seeds, of = int(row["cases"]), int(row["seeds"]), "networks" if row["seeds"] == "1" else "methods"
        shares = {"mean": [row[f"mean_{of}"]], "difference": [row[f"difference_{of}"]]}
        if of == "methods" or float(row["run_sd"]) == 0:  # else the shift of methods is none of networks
            shares["difference"].append(row["shifted_methods"])
        if cases < FEWEST:
            del shares["mean"]
        for kind, found in shares.items():
            by_seeds = measured[kind].setdefault(cases, {})
            by_seeds[seeds] = min(by_seeds.get(seeds, 1.0), *map(float, found))
        if seeds == 1:
            one_run[cases] = max(one_run.get(cases, 0.0), float(row["signed_rank"]))
    return measured, one_run


def main() -> None:
    """Every cell in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=4000, metavar="N", help="per row (default: %(default)s)")
    parser.add_argument("--cases", type=int, nargs="+", default=CASES, metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="N")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--csv", type=Path, metavar="FILE", help="simulate, and write this file")
    what.add_argument("--lowest", type=Path, metavar="FILE", help="print the lowest shares in this file")
    args = parser.parse_args()
    if args.lowest:
        with args.lowest.open(newline="", encoding="utf-8") as file:
            print(*lowest(list(csv.DictReader(file))), sep="\n")
        return
    rows: list[Row] = []
    for (name, scene), varies in product(SCENES.items(), (False, True)):
        world = World.of(scene, scene.run if varies else 0.0)
        for cases, seeds in product(args.cases, args.seeds):
            facts = {"scene": name, "run_sd": world.run_sd, "cases": cases, "seeds": seeds}
            rows.append(facts | {"simulations": args.simulations} | row_of(world, cases, seeds, args.simulations))
            write(args.csv, rows)


if __name__ == "__main__":
    main()
