"""A comparison as page, tables for LaTeX, picture and on the terminal: names are escaped, numbers are those found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import maskmed_zoo as zoo
from maskmed_zoo.cli.main import main
from maskmed_zoo.comparison import picture, report
from maskmed_zoo.comparison.numbers import decimals, interval, number, p_value, signed, size
from maskmed_zoo.runner import pictures
from tests.comparison.made import document, write

EVIL = "a|b_$x$%&#{}~^\\<i>*`![l](u)"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Scores of two methods on labels of which one has a hostile name."""
    base = np.random.default_rng(0).uniform(0.5, 0.9, (10, 2))
    tables = {"a": base, "b": base + 0.05}
    return [
        write(tmp_path / f"{name}.json", document(dice, labels=("liver", EVIL), hd95=10 - dice))
        for name, dice in tables.items()
    ]


def test_pages_escape_what_they_quote(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = zoo.compare({EVIL: files[0], "other": files[1]}, out=out)
    assert json.loads((out / "compare.json").read_text()) == found
    page = (out / "compare.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) >= 20
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) in (5, 7, 8), row
    unescaped = re.sub(r"\\(.)", "", page.split("## What the numbers are")[0])
    assert not re.search(r"[`\[\]<>~&]", unescaped)
    tex = (out / "compare.tex").read_text(encoding="utf-8")
    body = [line for line in tex.splitlines() if line and not line.startswith("%")]
    for line in body:
        assert not re.search(r"(?<!\\)[%#_^~]", line), line
    columns = 0
    for line in body:
        if begun := re.match(r"\\begin\{tabular\}\{(\w+)\}", line):
            columns = len(begun[1])
        elif line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    rows = [line for line in body if line.endswith(r"\\")]
    assert all(line.startswith("{}") for line in rows), "a name that begins with [ is no argument of the line break"
    assert "textquotedbl" not in tex
    assert tex.count("held the truth in as few as") == 1, "of means, once for all metrics"
    assert tex.count("corrected for the pairs of one metric") == 1
    for metric in found["metrics"].values():
        assert report._latex(metric["rules"]) in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 8
    assert tex.replace(r"\{", "").replace(r"\}", "").count("{") == tex.replace(r"\{", "").replace(r"\}", "").count("}")


def test_numbers_of_the_page_are_those_of_the_document(files: list[Path], tmp_path: Path) -> None:
    found = zoo.compare(files, out=tmp_path / "out")
    page = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    row = found["metrics"]["hd95"]["differences"][0]
    expected = f"| a − b | {row['mean']:+.4f} | {row['interval'][0]:+.4f} to {row['interval'][1]:+.4f} |"
    assert expected.replace("-", "−") in page.replace("\\", "")
    for definition in found["definitions"]:
        assert f"- {definition}: " in page
    warning = found["metrics"]["dice"]["methods"]["a"]["all"]["interval_warning"]
    assert warning, "of ten cases"
    assert warning in page.replace("\\", "")


def test_the_picture_has_a_row_for_all(files: list[Path], tmp_path: Path) -> None:
    found = zoo.compare(files, out=tmp_path / "out")
    rows = picture._rows(found)
    assert [(text, is_label) for text, is_label, _ in rows] == [("a − b", False), ("liver", True), (EVIL, True)]
    assert rows[1][2]["hd95"] == found["metrics"]["hd95"]["label_differences"][0]
    pixels = imread(tmp_path / "out" / "compare.png")[..., :3]
    assert pixels.shape[1] > 1.5 * pixels.shape[0], "two panels side by side"
    blue = np.abs(pixels - np.array([0x1F, 0x4E, 0x9C]) / 255).max(2) < 0.02
    assert blue.sum() > 100, "differences that are told from chance"


def test_pairs_of_very_different_size_have_scales_of_their_own(files: list[Path], tmp_path: Path) -> None:
    found = zoo.compare(files)
    assert len(picture._blocks(found)) == 1
    base = np.random.default_rng(0).uniform(0.5, 0.9, (10, 2))
    far = write(tmp_path / "far.json", document(base - 0.4, labels=("liver", EVIL), hd95=10 - base))
    found = zoo.compare([*files, far])
    blocks = picture._blocks(found)
    assert [block[0][0] for block in blocks] == ["a − b", "a − far", "b − far"]
    assert [row for block in blocks for row in block] == picture._rows(found)
    picture.draw(found, tmp_path / "own.png")
    height = imread(tmp_path / "own.png").shape[0]
    picture.draw(
        zoo.compare([*files, write(tmp_path / "c.json", json.loads(files[0].read_text()))]), tmp_path / "c.png"
    )
    assert height > imread(tmp_path / "c.png").shape[0], "an axis for every pair"


def test_the_caption_names_the_test() -> None:
    def caption(seeds: list[list[int]], patients: int | None = None) -> str:
        rows = [{"seeds": pair} for pair in seeds]
        comparison = {"patients": patients, "metrics": {"dice": {"differences": rows}}}
        return " ".join(picture._caption(comparison, own_scales=False))

    assert "p: the signed-rank test over cases, Holm-corrected." in caption([[1, 3], [1, 1]])
    assert "p: the test over patients and runs, Holm-corrected." in caption([[2, 3]], patients=4)
    both = caption([[2, 3], [1, 3]])
    assert "p: the test over cases and runs where both have several runs, else the signed-rank test over cases" in both


def test_names_that_begin_as_lists_do() -> None:
    assert report._item("1. x is better") == r"- 1\. x is better"
    assert report._item("- x is better") == r"- \- x is better"
    assert report._item("$x$ is better") == r"- \$x\$ is better"


def test_without_matplotlib_the_rest_is_written(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["compare", *map(str, files), "--out", str(out)]) == 0
    assert "matplotlib" not in capsys.readouterr().out
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    assert main(["compare", *map(str, files), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.md", "compare.tex"]
    assert "No picture, which needs matplotlib" in " ".join(capsys.readouterr().out.split())


def test_pairs_beyond_the_most_are_not_drawn(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = zoo.compare([*files, write(files[0].with_name("c.json"), json.loads(files[0].read_text()))])
    monkeypatch.setattr(picture, "MOST_PAIRS", 2)
    texts = [text for text, is_label, _ in picture._rows(found) if not is_label]
    assert texts == ["a − b", "a − c"]


def test_many_rows_are_drawn_without_labels(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = zoo.compare(files)
    monkeypatch.setattr(picture, "MOST_ROWS", 2)
    assert [is_label for _, is_label, _ in picture._rows(found)] == [False]


def test_on_the_terminal(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"mine={files[0]}", str(files[1]), "--metrics", "hd95", "--by-label"]) == 0
    text = capsys.readouterr().out
    for words in (
        "10 cases, 2 labels",
        "Dice (higher is better)",
        "HD95, mm (lower is better)",
        "mine − b",
        "Follows: ",
    ):
        assert words in text
    assert "Does not follow: " in text
    assert "With 10 cases these 95 % intervals held the truth" in " ".join(text.split())
    assert text.count("By label") == 2
    assert main(["compare", *map(str, files)]) == 0
    assert "By label" not in capsys.readouterr().out


def test_names_and_paths_of_methods(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "x=y,z.json"
    odd.write_bytes(files[0].read_bytes())
    assert main(["compare", str(odd), str(files[1])]) == 0
    assert "x=y,z − b" in capsys.readouterr().out
    assert main(["compare", f"group={files[0]},{files[1]}", f"odd={odd}"]) == 0
    assert "group − odd" in capsys.readouterr().out
    for words, message in (
        ([str(files[0])], "give two methods or more"),
        ([str(files[0]), str(files[0])], "two methods are called 'a'; give them names of their own"),
        ([f"={files[0]}", str(files[1])], r"expected [NAME=]PATH[,PATH…]"),
        (["name=", str(files[1])], r"expected [NAME=]PATH[,PATH…]"),
        (["nowhere", str(files[1])], "nowhere"),
    ):
        assert main(["compare", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_numbers_in_words() -> None:
    assert number(-0.00001) == "0.0000"
    assert (number(None), number(-1.234, 2), number(0.5, sign="+")) == ("–", "−1.23", "+0.5000")
    assert (size(-1.2, "mm"), signed(-0.5, "", 4)) == ("1.20 mm", "−0.5000")
    assert (interval(None), interval([-0.1, 0.2], 2)) == ("–", "−0.10 to 0.20")
    assert [p_value(p) for p in (None, 1e-9, 0.0123, 0.5, 1)] == ["–", "< 0.001", "0.012", "0.50", "1.00"]
    assert [p_value(p, "p") for p in (1e-9, 0.0123)] == ["p < 0.001", "p = 0.012"]


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ((0.02, 0.00001), "", 4),
        ((3.2, 1.5, 12.0), "mm", 2),
        ((0.15, 0.1, 0.21), "mm", 3),
        ((0.00421, 0.0021, 0.0063), "mL", 5),
        ((12.5, 0.03), "mm", 3),  # five digits of the largest
        ((12.5, 0.0003), "mm", 4),  # but one of the smallest
        ((150.0, -200.0, 0.0, None), "mm", 2),
        ((0.0, 1e-17), "mL", 2),
        ((1e-8, 1.0), "mL", 6),
    ],
)
def test_decimals_are_chosen_by_size(values: tuple[float | None, ...], unit: str, expected: int) -> None:
    assert decimals(values, unit) == expected
