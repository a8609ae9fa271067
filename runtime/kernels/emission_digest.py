"""The digest of the code that emits and compiles kernels: part of every key of the kernel cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder of the package ``planner``."""

ROOTS = ("planner.codegen.emit.bodies", "planner.codegen.spec.launch_plan", "planner.runtime.kernels.compile")
"""The modules that decide on kernels, emit and compile them."""

_IMPORT = re.compile(r"^ *(?:from (planner[\w.]*) import (\([^)]*\)|.*)|import (planner[\w.]+))", re.MULTILINE)


def emission_files(roots: Sequence[str] = ROOTS) -> list[Path]:
    """List every file that emission depends on, sorted: what the roots import, over any number of steps, and templates.

    roots: dotted names of modules of the package.
    """
    waiting, found = list(roots), set[Path]()
    while waiting:
        path = _file_of(waiting.pop())
        if path is None or path in found:
            continue
        found.add(path)
        for module, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
            waiting += [plain or module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))]
    return sorted([*found, *(ROOT / "codegen" / "templates").rglob("*.jinja")])


def emission_digest() -> str:
    """Return the hex digest of the names and contents of all emission files."""
    digest = hashlib.sha256()
    for path in emission_files():
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _file_of(module: str) -> Path | None:
    """The file of a module of the package, None for a name that is no module."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
