"""The kernel cache: compiled kernels on disk, by everything that they depend on.

A key is the digest of the kernel's spec, of the code that emits and compiles it, and of the compiler's version, so two
versions of anything live side by side and a wrong kernel is never found. Entries are written to a temporary file and
renamed: they are whole or not there. One process compiles while others wait on the key's lock, which the system
releases when its holder dies. What cannot be trusted is not loaded: a cache directory or a file that others could have
written is refused, a file that does not have its digest is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from planner._version import __version__
from planner.codegen.emit.bodies import emit
from planner.codegen.spec.feasibility import SHARED_KIB
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.errors import BadOption, MissingDependency, NoKernel, UnsafeCache
from planner.plan.atomic_write import SCRATCH_SUFFIX, replacing
from planner.runtime.kernels.emission_digest import emission_digest
from planner.runtime.kernels.kernel_file import KernelFile
from planner.runtime.kernels.private_folder import LOCK_SUFFIX, CannotLock, cache_folder, locked, why_unsafe

LIMIT = "PLANNER_CACHE_BYTES"
"""Environment variable: how large the cache may grow."""

DEFAULT_LIMIT = 2**30
SUFFIX = ".kernel"
STALE_SECONDS = 3600
"""Seconds after which a scratch folder is taken to be of a process that died."""


class CacheWarning(UserWarning):
    """The cache did not do its work; the kernel is right all the same."""


@dataclass(frozen=True)
class Entry:
    """A kernel in the cache. used: when it was last loaded, in seconds since 1970."""

    path: Path
    bytes: int
    used: float


class Cache:
    """A directory of compiled kernels. Any number of processes may share it. Raises BadOption."""

    def __init__(self, directory: Path | None = None, limit: int | None = None) -> None:
        self.directory = directory or cache_folder()
        self.limit = _limit() if limit is None else limit

    def get(self, spec: KernelSpec) -> KernelFile:
        """Load or compile the kernel of a spec; raises UnsafeCache, and what emission and compilation raise."""
        try:
            self._prepare()
        except OSError as error:
            return self._uncached(spec, f"{self.directory} cannot be made ({error.strerror})")
        path = self.directory / f"{spec.name}-{key_of(spec)[:24]}{SUFFIX}"
        found = self._load(path, spec)
        if found is not None:
            return found
        try:
            with locked(path):
                found = self._load(path, spec)
                return found if found is not None else self._compile_into(path, spec)
        except CannotLock as error:
            return self._uncached(spec, str(error))

    def entries(self) -> list[Entry]:
        """List all kernels, the one used longest ago first; raises UnsafeCache."""
        if not self.directory.exists():
            return []
        self._require_safe(self.directory)
        found = list[Entry]()
        for path in self.directory.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another process may clear the cache meanwhile
                status = path.lstat()
                found.append(Entry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def fault(self, entry: Entry) -> str | None:
        """Say what is wrong with an entry, None if nothing is."""
        try:
            self._require_safe(entry.path)
            KernelFile.from_bytes(entry.path.read_bytes())
        except UnsafeCache as error:
            return error.found.rstrip(".")
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def clear(self) -> int:
        """Remove all kernels and what dead processes left; return how many kernels."""
        entries = self.entries()
        for entry in entries:
            entry.path.unlink(missing_ok=True)
        if self.directory.exists():
            self._sweep(older_than=0)
        return len(entries)

    def _prepare(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._require_safe(self.directory)

    def _require_safe(self, path: Path) -> None:
        """Refuse what other users could have written: machine code from here will run as this user."""
        fault = why_unsafe(path)
        if fault is not None:
            raise UnsafeCache(str(path), fault)

    def _load(self, path: Path, spec: KernelSpec) -> KernelFile | None:
        try:
            self._require_safe(path)
            found = KernelFile.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            _warn(f"{path} is damaged ({error}); it is compiled anew")
            return None
        if found.emitted.spec != spec:
            _warn(f"{path} holds another kernel; it is compiled anew")
            return None
        with contextlib.suppress(OSError):  # a read-only cache serves all the same
            os.utime(path)
        return found

    def _compile_into(self, path: Path, spec: KernelSpec) -> KernelFile:
        made = build(spec)
        try:
            with replacing(path, private=True) as scratch:
                scratch.write_bytes(made.to_bytes())
            self._evict(keep=path)
        except OSError as error:
            _warn(f"{path} cannot be written ({error.strerror}); the kernel is kept in memory only")
        return made

    def _uncached(self, spec: KernelSpec, reason: str) -> KernelFile:
        _warn(f"{reason}; the kernel is kept in memory only")
        return build(spec)

    def _evict(self, keep: Path) -> None:
        """Remove the kernels used longest ago until the rest fits."""
        entries = self.entries()
        excess = sum(entry.bytes for entry in entries) - self.limit
        for entry in entries:
            if excess <= 0:
                break
            if entry.path != keep:
                entry.path.unlink(missing_ok=True)
                excess -= entry.bytes
        self._sweep(older_than=STALE_SECONDS)

    def _sweep(self, older_than: float) -> None:
        """Remove scratch folders of processes that died, and locks that nobody holds."""
        for path in [*self.directory.glob(f"*{SCRATCH_SUFFIX}"), *self.directory.glob(f"*{LOCK_SUFFIX}")]:
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime >= older_than:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _limit() -> int:
    given = os.environ.get(LIMIT, str(DEFAULT_LIMIT))
    if not given.isdecimal():
        raise BadOption(LIMIT, given, "a number of bytes")
    return int(given)


def build(spec: KernelSpec) -> KernelFile:
    """Emit and compile a kernel, on disk only while it is compiled; raises NoKernel, MissingDependency."""
    try:
        from planner.runtime.kernels.compile import compile_emitted
    except ImportError as error:
        remedy = "Install it, or point PLANNER_BUNDLE at kernels that `planner build` made elsewhere."
        raise MissingDependency(error.name or "triton", "compiling kernels", remedy) from None

    emitted = emit(spec)
    binary = compile_emitted(emitted)
    if binary.shared > SHARED_KIB[spec.arch] * 1024:
        raise NoKernel(f"{spec.pattern} with {spec.config}", f"it came out with {binary.shared} bytes of shared memory")
    return KernelFile(emitted, binary, toolchain())


def key_of(spec: KernelSpec) -> str:
    """Return the hex digest of everything that a compiled kernel depends on."""
    return hashlib.sha256("\n".join([spec.digest, *toolchain().values()]).encode()).hexdigest()


@lru_cache(maxsize=1)
def toolchain() -> dict[str, str]:
    """Return the toolchain of a kernel: versions, and the digest of the code that emits and compiles it."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "absent"
    return {"planner": __version__, "triton": triton, "code": emission_digest()}


def _warn(text: str) -> None:
    warnings.warn(f"kernel cache: {text}", CacheWarning, stacklevel=2)
