"""Digests of files: made, and compared with what they should be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from planner.errors import DamagedFile

Algorithm = Literal["sha256", "sha512"]


def digest(path: Path, algorithm: Algorithm = "sha256") -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify_file(path: Path, expected: str, algorithm: Algorithm = "sha256") -> None:
    """Raises DamagedFile where a file is missing or its digest is another."""
    found = digest(path, algorithm) if path.is_file() else "that of no file"
    if found != expected:
        raise DamagedFile(str(path), f"{algorithm.upper().replace('SHA', 'SHA-')} {expected[:16]}…", f"{found[:16]}…")
