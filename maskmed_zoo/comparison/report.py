"""A comparison as Markdown, LaTeX and JSON. Names come from anywhere, so both languages get them escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskmed_zoo.comparison.compare import FORMAT
from maskmed_zoo.comparison.numbers import counted
from maskmed_zoo.comparison.tables import TextTable, cost_table, heading, tables_of
from maskmed_zoo.errors import DataError, OutputError, escaped
from maskmed_zoo.files import is_there, make_folder, read_json, write_text

FILES = ("compare.md", "compare.tex", "compare.json")
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\char34{}", "−": "$-$", "–": "--",
}  # fmt: skip


def check_folder(out: Path, further: str) -> None:
    """Raise `OutputError` where a comparison in this folder would replace files that are of none."""
    there = [name for name in (*FILES, further) if is_there(out / name)]
    if there and not _is_comparison(out / FILES[-1]):
        raise OutputError(f"{out / there[0]}: exists and is of no comparison, so it stays; give another folder")


def write(comparison: Mapping[str, Any], out: Path) -> list[Path]:
    """Write `compare.md`, `compare.tex` and `compare.json`."""
    make_folder(out)
    text = json.dumps(comparison, indent=1, allow_nan=False) + "\n"
    contents = ("\n".join(markdown(comparison)) + "\n", "\n".join(latex(comparison)) + "\n", text)
    for name, content in reversed([*zip(FILES, contents, strict=True)]):
        write_text(out / name, content)
    return [out / name for name in FILES]


def markdown(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a page: in words, then the tables of every metric, costs, and what the numbers are."""
    names = ", ".join(method["name"] for method in comparison["methods"])
    yield from (f"# Comparison of {_markdown(names)}", "", _markdown(data_line(comparison)), "")
    cost = cost_table(comparison)
    for name, tables in tables_of(comparison).items():
        metric = comparison["metrics"][name]
        yield from (f"## {_markdown(heading(metric))}", "")
        for words in metric["words"]:
            yield from (f"**{_markdown(words['first'])} and {_markdown(words['second'])}.** What follows:", "")
            yield from map(_item, words["follows"])
            if words["does_not_follow"]:
                yield from ("", "What does not follow:", "", *map(_item, words["does_not_follow"]))
            yield ""
        for table in tables:
            yield from _markdown_table(table)
        yield from (_markdown(metric["rules"]), "")
    if cost is not None:
        yield from _markdown_table(cost)
    yield from ("## Notes", "", *map(_item, comparison["notes"]), "", "## What the numbers are", "")
    yield from (f"- {key}: {meaning}" for key, meaning in comparison["definitions"].items())


def data_line(comparison: Mapping[str, Any]) -> str:
    """On what was compared."""
    cases, patients = len(comparison["cases"]), comparison["patients"]
    of = f" of {counted(patients, 'patient')}" if patients is not None else ""
    checked = (
        ""
        if comparison["references_checked"]
        else (" That the references are the same is not known: some scores do not tell theirs.")
    )
    return f"{counted(cases, 'case')}{of}, {counted(len(comparison['labels']), 'label')}.{checked}"


def latex(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Tables to `\\input` into a document; they need no package."""
    yield "% Written by maskmed-zoo compare; \\input this file."
    for name, tables in tables_of(comparison).items():
        for table in tables:
            yield from _latex_table(table)
        yield from (rf"{{\small {_latex(comparison['metrics'][name]['rules'])}\par}}", "")
    cost = cost_table(comparison)
    if cost is not None:
        yield from _latex_table(cost)
    yield rf"{{\small {_latex(' '.join(comparison['notes']))}\par}}"


def _markdown_table(table: TextTable) -> Iterator[str]:
    aligned = ["---" if index < table.words else "---:" for index in range(len(table.headings))]
    yield from (f"**{_markdown(table.title)}**", "", _row(table.headings), f"|{'|'.join(aligned)}|")
    yield from (_row(row) for row in table.rows)
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(_markdown, cells))} |"


def _markdown(text: str) -> str:
    """One line that no character of it can change the meaning of."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", escaped(text))


def _item(text: str) -> str:
    """A list's item, which a name at its beginning makes no list or heading of its own."""
    return "- " + re.sub(
        r"^(\d+)([.)])|^([-+=])", lambda found: rf"{found[1] or ''}\{found[2] or found[3]}", _markdown(text)
    )


def _latex_table(table: TextTable) -> Iterator[str]:
    columns = "l" * table.words + "r" * (len(table.headings) - table.words)
    yield from (
        r"\begin{center}\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\textbf{{{_latex(table.title)}}}\par\smallskip",
    )
    yield from (rf"\begin{{tabular}}{{{columns}}}", r"\hline", _latex_row(table.headings), r"\hline")
    yield from (*map(_latex_row, table.rows), r"\hline", r"\end{tabular}", r"\end{center}", "")


def _latex_row(cells: tuple[str, ...]) -> str:
    """Behind `{}`, so that a cell which begins with [ or * is no argument of the line break before it."""
    return "{}" + " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in escaped(text))


def _is_comparison(path: Path) -> bool:
    try:
        content = read_json(path)
    except DataError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
