"""Files that are written whole or not at all: the one way in which this project writes a file that is kept."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SCRATCH_PREFIX, SCRATCH_SUFFIX = ".writing-", ".tmp"
"""Names of scratch folders begin and end so; one that stays behind is of a process that was killed."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to, which takes the place of ``path`` when the block ends.

    The file has its own name in a scratch folder beside ``path``, and is on the disk before it takes its place. If
    writing it fails, what was there stays, and nothing is left behind. Of several writers the last one wins. private:
    nobody but this user may read or write the file; else it has the mode that the process gives to new files. Raises
    OSError.
    """
    path = Path(path)
    with _scratch_folder(path) as folder:
        scratch = Path(folder) / path.name
        yield scratch
        if private:
            scratch.chmod(0o600)
        _flush(scratch)
        os.replace(scratch, path)
        _flush_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8, whole or not at all; raises OSError."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _scratch_folder(path: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder beside a file, for this user alone; an OSError names the file."""
    try:
        return tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, suffix=SCRATCH_SUFFIX, dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _flush(path: Path) -> None:
    """Have the system put a file on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Have the system put the names in a folder on the disk; Windows has no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
