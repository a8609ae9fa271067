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
LINKED = ("codegen", "runtime", "models")
"""Folders that no page so far writes into, which a tree shares with this one."""


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


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def copy_tree(folder):
    """Copy the tree, without weights and goldens."""
    for name in ("planner", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("goldens", "*.pyc"))
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
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
    words = shlex.split(command)
    words = [sys.executable, *words[1:]] if words[0] == "python" else words
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path or (folder,))), **environment}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout
