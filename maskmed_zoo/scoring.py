"""`zoo.evaluate`, `zoo.compare`, `zoo.postprocess`; imported with the package, they import the rest when called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from pathlib import Path

    from maskmed_zoo.metric_settings import MetricSettings


def evaluate(
    run: str | Path | None = None,
    *,
    pred: str | Path | None = None,
    ref: str | Path | None = None,
    labels: Mapping[str, int] | None = None,
    metrics: Sequence[str] = (),
    metric_settings: str | Path | Mapping[str, Any] | MetricSettings | None = None,
    missing_as_missed: bool = False,
    pictures: str | Path | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    weights: Literal["last", "best"] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Scores of a run or a study on its validation cases, or of label maps against references, as a JSON-able summary.

    Args:
        run: folder of a run; its predictions, its evaluation.json and its evaluation.csv are written there. Of a study,
            the folder of all folds: the folds are scored, and all their cases together.
        pred: folder of label maps, with `ref`.
        ref: folder of reference label maps of the same names.
        labels: label names and values of `pred` and `ref`; default: those of the dataset.json in `ref` or beside it.
        metrics: further ones than Dice, by name: several, or one.
        metric_settings: what they depend on, such as the tolerance of `nsd`: a YAML file or its content; default: a
            run's recipe under `evaluation`, else the defaults there.
        missing_as_missed: score a reference without a prediction as if that were empty, instead of refusing it.
        pictures: folder for evaluation.png, the worst, median and best case of `pred`; a run has it in its own.
        data: where the run's data sets are now, if they have moved.
        weights: which checkpoint of a run; default: the last.
        device: for a run, as in `train`.

    Raises `ArgumentError` unless either `run`, or `pred` and `ref` are given with what belongs to them, and for a
    metric that there is none of; `RecipeError` for wrong settings; `DataError` and `CheckpointError` for unusable
    folders.
    """
    from pathlib import Path

    from maskmed_zoo.arguments import NONE, expect, expect_folders, expect_path, expect_several
    from maskmed_zoo.errors import ArgumentError

    for name, folder in (("run", run), ("pred", pred), ("ref", ref), ("pictures", pictures)):
        expect_path(name, folder, "a folder", optional=True)
    expect("weights", weights, (str, *NONE), "'last' or 'best'")
    expect("labels", labels, (Mapping, *NONE), "label names and values")
    if data is not None:
        expect_folders(data)
    if not isinstance(metrics, str):
        expect_several("metrics", metrics, (str,), "names of metrics")
    expect("missing_as_missed", missing_as_missed, (bool,), "True or False")
    if (run is None) == (pred is None) or (pred is None) != (ref is None):
        raise ArgumentError("evaluate: give either a run, or pred and ref")
    if pred is not None and ref is not None:
        if (data, weights, device) != (None, None, None):
            raise ArgumentError("evaluate: data, weights and device belong to a run, not to pred and ref")
        from maskmed_zoo.runner.pictures import score_folders

        how: dict[str, Any] = {"metrics": metrics, "settings": metric_settings, "missing_as_missed": missing_as_missed}
        return score_folders(pred, ref, labels, pictures=pictures, **how)
    if labels is not None or pictures is not None or missing_as_missed:
        raise ArgumentError(
            "evaluate: labels, pictures and missing_as_missed belong to pred and ref; a run has its own labels and "
            "pictures, and predicts every case"
        )
    from maskmed_zoo.runner.evaluate import evaluate as evaluate_run
    from maskmed_zoo.runner.run_folder import RunFolder
    from maskmed_zoo.runner.study_folder import folds_in
    from maskmed_zoo.runner.study_scores import evaluate_study

    folder = RunFolder(Path(str(run)))
    wanted: dict[str, Any] = {"data": data, "device": device, "which": weights or "last"}
    wanted |= {"metrics": metrics, "settings": metric_settings}
    return evaluate_study(folder.path, **wanted) if folds_in(folder.path) else evaluate_run(folder, **wanted)


def compare(
    methods: Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]],
    *,
    ref: str | Path | None = None,
    labels: Mapping[str, int] | None = None,
    metrics: Sequence[str] = (),
    metric_settings: str | Path | Mapping[str, Any] | MetricSettings | None = None,
    missing_as_missed: bool = False,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Methods on the same cases: differences with intervals and tests, ranks, costs, and in words what follows.

    Args:
        methods: two or more paths, or name to path or, of several seeds, paths. A path is a run that `evaluate` has
            scored, a folder of runs, a folder of label maps, or a file of `evaluate --json`.
        ref: folder of reference label maps, for label maps; those of runs are then scored against it too.
        labels: as in `evaluate`, with `ref`.
        metrics: further ones than Dice, by name, several or one; default: all that every run has scores of, with
            `ref` Dice alone.
        metric_settings: as in `evaluate`, with `ref`.
        missing_as_missed: as in `evaluate`, with `ref`; without, compare scores that were made so, instead of refusing
            them.
        out: folder for compare.md, compare.tex, compare.json and, with matplotlib, compare.png.

    Returns a JSON-able document, the content of compare.json. Raises `ArgumentError` for arguments that do not go
    together, `DataError` for paths that cannot be used and for other cases, labels or references, `OutputError` for
    files in `out` that are of no comparison.
    """
    from pathlib import Path

    from maskmed_zoo.arguments import NONE, expect, expect_path, expect_several
    from maskmed_zoo.errors import ArgumentError

    expect("missing_as_missed", missing_as_missed, (bool,), "True or False")
    expect("labels", labels, (Mapping, *NONE), "label names and values")
    for name, folder in (("ref", ref), ("out", out)):
        expect_path(name, folder, "a folder", optional=True)
    if not isinstance(metrics, str):
        expect_several("metrics", metrics, (str,), "names of metrics")
    given = _by_name(methods)
    if ref is None and (labels is not None or metric_settings is not None):
        raise ArgumentError("compare: labels and metric_settings belong to ref")

    from maskmed_zoo.comparison.compare import compare as run
    from maskmed_zoo.comparison.methods import References
    from maskmed_zoo.comparison.picture import PICTURE, draw
    from maskmed_zoo.comparison.report import check_folder, write
    from maskmed_zoo.evaluation.metrics import chosen
    from maskmed_zoo.files import is_there
    from maskmed_zoo.runner.pictures import can_draw

    wanted = chosen(metrics) if metrics else []
    if out is not None:
        check_folder(Path(out), PICTURE)
    references = References(None if ref is None else Path(ref), labels, metric_settings, missing_as_missed)
    comparison = run(given, wanted, references)
    if out is not None:
        picture = Path(out) / PICTURE
        if can_draw():
            draw(comparison, picture)
        elif is_there(picture):
            picture.unlink()  # of the comparison that is replaced
        write(comparison, Path(out))
    return comparison


def postprocess(
    run: str | Path,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    weights: Literal["last", "best"] = "last",
    thresholds: bool = False,
    device: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Choose post-processing of a run or a study on its validation cases; `predict` and `load` then apply it.

    Args:
        run: folder of a run or a study that `evaluate` has scored; postprocessing.json is written there.
        data: where the run's data sets are now, if they have moved.
        weights: which checkpoint's label maps it is chosen on, and for.
        thresholds: whether thresholds of labels are tried too; the network then computes the probabilities of all
            cases once more, which takes as long as `evaluate`.
        device: for that, as in `train`.
        dry_run: write nothing.

    Returns a JSON-able document, the content of postprocessing.json. Raises `CheckpointError` for a folder that is no
    run, and `DataError` for cases that are not predicted by these weights with the settings that `predict` takes, or
    cannot be used.
    """
    from pathlib import Path

    from maskmed_zoo.arguments import expect, expect_folders, expect_path
    from maskmed_zoo.errors import ArgumentError

    expect_path("run", run, "the folder of a run or a study")
    expect("weights", weights, (str,), "'last' or 'best'")
    expect("thresholds", thresholds, (bool,), "True or False")
    expect("dry_run", dry_run, (bool,), "True or False")
    if data is not None:
        expect_folders(data)
    if weights not in ("last", "best"):
        raise ArgumentError(f"weights: expected 'last' or 'best', got {weights!r}")
    from maskmed_zoo.postprocessing.postprocess import postprocess as choose
    from maskmed_zoo.runner.run_folder import RunFolder

    how: dict[str, Any] = {"which": weights, "thresholds": thresholds, "device": device, "dry_run": dry_run}
    return choose(RunFolder(Path(run)), data=data, **how).model_dump(mode="json")


def _by_name(methods: object) -> dict[str, list[Path]]:
    """Paths by name; raises `ArgumentError` for anything else, and for two methods of one name."""
    from pathlib import Path

    from maskmed_zoo.arguments import PATH, expect, expect_several
    from maskmed_zoo.comparison.methods import name_of
    from maskmed_zoo.errors import ArgumentError

    what = "a path, or several, of runs, label maps or scores"
    given: dict[str, list[Path]] = {}
    if isinstance(methods, Mapping):
        for name, paths in methods.items():
            expect("methods", name, (str,), "names of methods")
            several = [paths] if isinstance(paths, PATH) else paths
            expect_several(f"methods['{name}']", several, PATH, what)
            given[name] = [Path(path) for path in several]
        return given
    expect_several("methods", methods, PATH, "names and paths, or two paths or more")
    for path in map(Path, cast(Sequence[str], methods)):
        name = name_of(path)
        if name in given:
            raise ArgumentError(f"methods: two are called '{name}'; give a mapping of names to paths")
        given[name] = [path]
    return given
