"""Pages of docs/ that say what to write into which file: followed to the letter, in a tree or as a plug-in."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("planner", "codegen", "runtime", "models", "tests")
LEFT_OUT = shutil.ignore_patterns("goldens", "weights", "*.pyc")


def files(page):
    """Return the page's code by the file that its first line names."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"```(?:python|toml)\n# (\S+?)(?:,[^\n]*)?\n(.*?)```", text, re.DOTALL)
    assert len(found) == len(re.findall("^```(?:python|toml)$", text, re.MULTILINE)), "a block names no file"
    return dict(found)


def commands(page):
    """List the commands that the page says to run."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def insert_after(folder, name, last, text):
    """Write lines into a file of a tree, after the last line that begins with some words."""
    lines = (folder / name).read_text().splitlines(keepends=True)
    at = max(number for number, line in enumerate(lines) if line.lstrip().startswith(last))
    (folder / name).write_text("".join([*lines[: at + 1], text, *lines[at + 1 :]]))


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def copy_tree(folder):
    """Copy the tree to a folder of one's own, without weights and goldens."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=LEFT_OUT)
    shutil.copy(ROOT / "pyproject.toml", folder)


def install(pyproject, folder):
    """Write what an installer notes down of a package, whose modules lie in a folder of sys.path."""
    project = tomllib.loads(pyproject)["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{entry} = {module}" for entry, module in entries.items()))
    ]
    write(folder, f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    write(folder, f"{name}-{version}.dist-info/entry_points.txt", "\n".join(lines))


def run(folder, command, *path, status=0, **environment):
    """Run a command in a folder, with the package that is first on the path, and return what it printed."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    words = [sys.executable, "-m", "planner", *words[1:]] if words[0] == "planner" else words
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path or (folder,))), **environment}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr
