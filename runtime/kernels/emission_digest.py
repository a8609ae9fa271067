"""The digest of the code that emits and compiles kernels: part of every key of the kernel cache."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from planner.codegen.spec.body import BODIES
from planner.patterns.base import PATTERNS

ROOT = Path(__file__).parents[2]
"""The folder of the package ``planner``."""

ROOTS = ("planner.codegen.emit.bodies", "planner.codegen.spec.launch_plan", "planner.runtime.kernels.compile")
"""The modules that decide on kernels, emit and compile them."""

REGISTRIES = (PATTERNS, BODIES)
"""The registries whose entries emission depends on."""

_IMPORT = re.compile(r"^ *(?:from (planner[\w.]*) import (\([^)]*\)|.*)|import (planner[\w.]+))", re.MULTILINE)


def emission_files(roots: Sequence[str] = ROOTS) -> list[Path]:
    """List every file of the package that emission depends on, sorted.

    They are what the roots and the modules of registered entries import, over any number of steps, and templates.
    roots: dotted names of modules of the package.
    """
    waiting, found = [*roots, *_registered()], set[Path]()
    while waiting:
        path = _file_of(waiting.pop())
        if path is None or path in found:
            continue
        found.add(path)
        for module, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
            waiting += [plain or module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))]
    return sorted([*found, *(ROOT / "codegen" / "templates").rglob("*.jinja")])


def plugin_files() -> list[Path]:
    """List every source file and template of the packages of plug-ins that emission depends on, sorted."""
    tops = {name.partition(".")[0] for name in _registered()} - {__name__.partition(".")[0]}
    found = set[Path]()
    for top in sorted(tops):
        module = sys.modules[top]
        folders = [Path(folder) for folder in getattr(module, "__path__", ())]
        found.update(path for folder in folders for end in ("py", "jinja") for path in folder.rglob(f"*.{end}"))
        if not folders and getattr(module, "__file__", None):
            found.add(Path(str(module.__file__)))
    return sorted(found)


def emission_digest() -> str:
    """Return the hex digest of the names and contents of all files that emission depends on."""
    digest = hashlib.sha256()
    for path in emission_files():
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    for path in plugin_files():
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _registered() -> list[str]:
    """List the modules of the entries of registries."""
    return sorted({entry.__module__ for registry in REGISTRIES for entry in registry.values()})


def _file_of(module: str) -> Path | None:
    """Find the file of a module of the package, None for a name that is none and for modules of other packages."""
    package, *names = module.split(".")
    path = ROOT.joinpath(*names)
    files = (path.with_suffix(".py"), path / "__init__.py") if package == __name__.partition(".")[0] else ()
    return next((each for each in files if each.is_file()), None)
