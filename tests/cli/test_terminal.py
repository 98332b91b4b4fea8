"""Standard output and error of any kind: what is printed is harmless, and what cannot be printed ends in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.text as mpl_text
import numpy as np
import pytest
from rich.progress import Progress
from rich.table import Table

from maskmed_zoo.cli import output
from maskmed_zoo.cli.main import main
from maskmed_zoo.errors import OutputError
from maskmed_zoo.report.figure import comparison_figure
from maskmed_zoo.runner.display import Display, PlainConsole

NASTY = "a\x1b[31m\rb\x07\x9b\u202e\u2028[red]x[/red]:smile:"
SHOWN = r"a\x1b[31m\rb\x07\x9b\u202e\u2028[red]x[/red]:smile:"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A shell's line in which ZOO stands for the command, with the exit code of the first one in a pipe."""
    command = f"{sys.executable} -m maskmed_zoo"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("ZOO", command)], capture_output=True, text=True, check=False
    )


FULL = "standard output: cannot be written (No space left on device); check where it goes\n"
LINES = {
    "ZOO list | true": (141, ""),
    "ZOO --help | true": (141, ""),
    "ZOO list > /dev/full": (2, FULL),
    "ZOO list --json > /dev/full": (2, FULL),
    "ZOO --help > /dev/full": (2, FULL),
    "ZOO list --help > /dev/full": (2, FULL),
    "ZOO list >&-": (0, ""),
    "ZOO list >&- 2>&-": (0, ""),
    "ZOO nothing 2> /dev/full": (2, ""),
    "ZOO train 2> /dev/full": (2, ""),
    "PYTHONIOENCODING=ascii ZOO describe masked_query > /dev/null": (0, ""),
    "PYTHONIOENCODING=ascii ZOO describe masked_query --json > /dev/null": (0, ""),
}


@pytest.mark.parametrize("line", LINES)
def test_outputs_that_take_nothing(line: str) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr) == LINES[line]


def test_messages_show_control_characters_as_escapes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["list", NASTY]) == 0
    assert capsys.readouterr().out == f"nothing matches '{SHOWN}'\n"
    assert main([NASTY]) == 2
    assert f"no command '{SHOWN}'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["list", "a", NASTY])
    said = capsys.readouterr().err
    assert said == f"maskmed-zoo list: unrecognized arguments: {SHOWN}; 'maskmed-zoo list --help' tells more\n"
    assert main(["validate", str(tmp_path / "\udcff.yaml")]) == 2
    assert r"\udcff.yaml: no such recipe file" in capsys.readouterr().err


def test_what_is_printed_is_escaped_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(NASTY, title=NASTY)
    table.add_row(NASTY)
    output.render(NASTY, table)
    output.write(NASTY)
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 5
    assert printed.replace("\n", "").isprintable()


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    content = {NASTY: ["\udcff", "😀", "–"]}
    output.write_json(content)
    printed = capsys.readouterr().out
    assert json.loads(printed) == content
    assert printed.replace("\n", "").isprintable()
    assert "😀" in printed


def test_progress_is_escaped_and_outlives_its_reader() -> None:
    file = io.StringIO()
    display = Display(PlainConsole(file=file, width=200, force_terminal=True))
    display.say(NASTY)
    with display.task(NASTY) as show:
        show(1, 2)
    assert file.getvalue().count(SHOWN) >= 2
    assert isinstance(display._bars(), Progress)

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    Display(PlainConsole(file=Full())).say("training goes on")


def test_a_failure_that_is_no_closed_pipe_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.StringIO):
        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Failing())
    with pytest.raises(OutputError, match="Input/output error"):
        output.write("x")


@pytest.mark.parametrize("name", ["a$b", "$x_1^2$", "$\\frac$", "_hidden", "a_b^c", "\x1b[31m"])
def test_names_stand_in_pictures_as_they_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    render = mpl_text.Text.draw

    def draw(self: mpl_text.Text, renderer: Any, *args: Any, **settings: Any) -> None:
        drawn.append(self.get_text())
        assert self._preprocess_math(self.get_text())[1] is False
        render(self, renderer, *args, **settings)

    monkeypatch.setattr(mpl_text.Text, "draw", draw)
    image = np.zeros((4, 8, 8), np.float32)
    labels = np.ones((4, 8, 8), np.uint8)
    comparison_figure(tmp_path / "p.png", [(name, image, labels, labels)], ["background", name], (1.0, 1.0, 1.0))
    shown = name.replace("\x1b", r"\x1b")
    assert shown in drawn
    assert any(text.startswith(f"{shown}\n") for text in drawn)
