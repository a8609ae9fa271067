"""Every snippet of README and docs runs: Python as it stands, page by page, and commands of the command line.

A fenced block of ``python`` or ``console`` is run, in the order of its page, in one folder and one namespace. Comments
that a reader does not see say what a block begins with, ``<!-- prelude: pipe = tiny_flux_pipeline() -->`` (names of
preludes.py), or, on the line after it, why it is not run, ``<!-- not run: needs the network -->``.
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from docs import preludes
from planner.cli.commands import app

ROOT = Path(__file__).parents[2]
FOLLOWED = {path.stem.removeprefix("test_").replace("_", "-") for path in Path(__file__).parent.glob("test_*.py")}
"""Pages that say how to add a thing: a test of their own, named as the page is, does what they say."""

PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem not in FOLLOWED)]
REASONS = {"needs the network", "needs a GPU", "an excerpt of a file", "a file to create"}

BLOCK = re.compile(
    r"<!-- prelude: (?P<prelude>.*?) -->|"
    r"^```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^```\n(?:<!-- not run: (?P<reason>.*?) -->)?",
    re.MULTILINE | re.DOTALL,
)


def blocks(page):
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        line = page.read_text(encoding="utf-8")[: match.start()].count("\n") + 1
        yield line, match["prelude"], match["kind"], match["code"], match["reason"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(vars(preludes))
    for line, prelude, kind, code, reason in blocks(page):
        if reason is not None:
            assert reason in REASONS, f"{page.name}:{line}: {reason!r} is no reason"
        elif prelude is not None:
            exec(compile(prelude, f"{page.name}:{line}", "exec"), names)
        elif kind == "python":
            exec(compile("\n" * line + code, str(page), "exec"), names)
        elif kind == "console":
            run_commands(code, f"{page.name}:{line}")
        else:
            assert kind not in ("bash", "sh", "shell", "pycon"), f"{page.name}:{line}: write console or python"


def run_commands(code, where):
    for command in re.findall(r"^\$ (.*(?:\n> .*)*)", code, re.MULTILINE):
        program, *arguments = shlex.split(command.replace("\n> ", " "), comments=True)
        assert program == "planner", f"{where}: {program!r} is not run here; say why"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{where}: {command}\n{result.output}\n{result.exception!r}"


def test_no_command_hides_in_an_indented_block():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        hidden = re.findall(r"^    (?:planner|python|pip|pytest|import) .*", text, re.MULTILINE)
        assert not hidden, f"{page.name}: {hidden[0]}"
