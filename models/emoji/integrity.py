"""Digests of files, and their comparison with expected ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from planner.errors import DamagedFile

Algorithm = Literal["sha256", "sha512"]


def digest(path: Path, algorithm: Algorithm = "sha256") -> str:
    """Return the digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify_file(path: Path, expected: str, algorithm: Algorithm = "sha256") -> None:
    """Compare a file with its expected digest; raises DamagedFile where it is missing or its digest is another."""
    actual = digest(path, algorithm) if path.is_file() else "that of no file"
    if actual != expected:
        raise DamagedFile(str(path), f"{algorithm.upper().replace('SHA', 'SHA-')} {expected[:16]}…", f"{actual[:16]}…")
