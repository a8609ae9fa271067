"""The folder of kernels: all processes of this user share it, and nobody else may write to it."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

FOLDER = "PLANNER_CACHE_DIR"
"""Environment variable: the folder of kernels."""

LOCK_SUFFIX = ".lock"


class CannotLock(Exception):
    """A lock that cannot be had: its folder is full, read-only, or on a file system without locks."""


def cache_folder() -> Path:
    """Return the folder in which kernels, and the configs that tuning found, are kept.

    It is $PLANNER_CACHE_DIR, or else ``planner/kernels`` in the user's cache folder: $XDG_CACHE_HOME or ``~/.cache`` on
    Linux.
    """
    chosen = os.environ.get(FOLDER)
    return Path(chosen) if chosen else user_cache_path("planner", appauthor=False) / "kernels"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a path and hold it; the system releases it if its holder dies. Raises CannotLock."""
    # A marker file in place of a lock would outlive a process that is killed.
    lock = FileLock(path.with_suffix(LOCK_SUFFIX), mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        raise CannotLock(f"{lock.lock_file} cannot be locked ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def why_unsafe(path: Path, trusted: Collection[int] = ()) -> str | None:
    """Say how another user could have written a file or folder, None if none could; raises OSError.

    trusted: ids of users who may own it beside this one.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if sys.platform == "win32":
        return None  # its access lists are not in the mode
    if status.st_uid not in (os.geteuid(), *trusted):
        return f"it belongs to user {status.st_uid}, and this is user {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"its mode {stat.S_IMODE(status.st_mode):o} lets other users write"
    return None
