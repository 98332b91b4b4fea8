"""`zoo.compare`; imported with the package, so it imports what it does when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pathlib import Path

    from maskmed_zoo.metric_settings import MetricSettings


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
        metrics: further ones than Dice, by name; default: all that every run has scores of, with `ref` Dice alone.
        metric_settings: as in `evaluate`, with `ref`.
        missing_as_missed: as in `evaluate`, with `ref`.
        out: folder for compare.md, compare.tex, compare.json and compare.png.

    Returns a JSON-able document, the content of compare.json. Raises `ArgumentError` for arguments that do not go
    together, `DataError` for paths that cannot be used and for other cases, labels or references, `OutputError` for
    files in `out` that are of no comparison, `UserError` for `out` without matplotlib.
    """
    from pathlib import Path

    from maskmed_zoo.arguments import NONE, PATH, expect, expect_path, expect_several
    from maskmed_zoo.errors import ArgumentError
    from maskmed_zoo.metric_settings import MetricSettings

    expect("missing_as_missed", missing_as_missed, (bool,), "True or False")
    expect("labels", labels, (Mapping, *NONE), "label names and values")
    expect("metric_settings", metric_settings, (*PATH, Mapping, MetricSettings, *NONE), "a YAML file, or its content")
    for name, folder in (("ref", ref), ("out", out)):
        expect_path(name, folder, "a folder", optional=True)
    if not isinstance(metrics, str):
        expect_several("metrics", metrics, (str,), "names of metrics")
    given = _by_name(methods)
    if ref is None and (labels is not None or metric_settings is not None or missing_as_missed):
        raise ArgumentError("compare: labels, metric_settings and missing_as_missed belong to ref")

    from maskmed_zoo.comparison.compare import compare as run
    from maskmed_zoo.comparison.methods import References
    from maskmed_zoo.comparison.picture import PICTURE, draw
    from maskmed_zoo.comparison.report import check_folder, write
    from maskmed_zoo.evaluation.metrics import chosen
    from maskmed_zoo.evaluation.settings import metric_settings as read
    from maskmed_zoo.report.canvas import require_matplotlib

    wanted = chosen(metrics) if metrics else []
    settings = None if metric_settings is None else read(metric_settings)
    if out is not None:
        require_matplotlib()
        check_folder(Path(out), PICTURE)
    references = References(None if ref is None else Path(ref), labels, settings, missing_as_missed)
    comparison = run(given, wanted, references)
    if out is not None:
        write(comparison, Path(out))
        draw(comparison, Path(out) / PICTURE)
    return comparison


def _by_name(methods: object) -> dict[str, list[Path]]:
    """Paths by name; raises `ArgumentError` for anything else, and for two methods of one name."""
    from pathlib import Path

    from maskmed_zoo.arguments import PATH, expect, expect_several
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
        name = path.resolve().name.removesuffix(".json")
        if name in given:
            raise ArgumentError(f"methods: two are called '{name}'; give a mapping of names to paths")
        given[name] = [path]
    return given
