"""Registries: named things of one kind, which a plug-in can add to.

A plug-in is a module named by an entry point of the group ``planner.plugins``. It is imported when a registry is first
looked into, and adds what it has by ``REGISTRY.register``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from threading import RLock
from types import ModuleType
from typing import TypeVar, cast

from planner.errors import BadPlugin, UnknownName

GROUP = "planner.plugins"
"""The group of entry points that name plug-ins."""

T = TypeVar("T")
E = TypeVar("E")


class Registry(Mapping[str, T]):
    """Entries of one kind by name, in the order of their names: the project's own and those of plug-ins.

    kind: what an entry is, for messages: ``pattern``. builtin: modules that register the project's own entries, and
    packages, each of whose modules may; they are imported when the registry is first looked into.
    """

    def __init__(self, kind: str, builtin: Sequence[str] = ()) -> None:
        self.kind = kind
        self._builtin = tuple(builtin)
        self._entries = dict[str, T]()
        self._is_loaded = self._is_being_filled = False
        self._loading = RLock()

    def register(self, name: str) -> Callable[[E], E]:
        """Return a decorator that adds an entry under a name and returns it as it is.

        Raises BadPlugin where another entry has the name.
        """

        def add(entry: E) -> E:
            taken = self._entries.get(name)
            if taken is not None and _identity(taken) != _identity(entry):
                raise BadPlugin(_origin(entry), f"it registers the {self.kind} {name!r}, which {_origin(taken)} has")
            self._entries[name] = cast(T, entry)
            return entry

        return add

    def name_of(self, entry: T) -> str:
        """Return the name of an entry; raises UnknownName for what is not registered."""
        for name, each in self._entries.items():
            if each is entry:
                return name
        raise UnknownName(self.kind, str(getattr(entry, "__name__", entry)), self._entries)

    def __getitem__(self, name: str) -> T:
        """Return an entry; raises UnknownName, which is a KeyError, with the nearest name."""
        self._load()
        if name not in self._entries:
            raise UnknownName(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        if self._is_loaded:
            return
        with self._loading:
            if self._is_loaded or self._is_being_filled:
                return  # a module that registers may look things up
            self._is_being_filled = True
            try:
                for name in self._builtin:
                    module = importlib.import_module(name)
                    for each in pkgutil.iter_modules(getattr(module, "__path__", ())):
                        importlib.import_module(f"{name}.{each.name}")
                plugins()
                self._is_loaded = True
            finally:
                self._is_being_filled = False


@lru_cache(maxsize=1)
def plugins() -> Mapping[str, ModuleType]:
    """Import the plug-ins that are installed and return them by name; raises BadPlugin for one that fails."""
    found = dict[str, ModuleType]()
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        try:
            loaded = entry.load()
        except BadPlugin:
            raise
        except Exception as error:
            raise BadPlugin(entry.name, f"importing {entry.value} raised {type(error).__name__}: {error}") from error
        if not isinstance(loaded, ModuleType):
            raise BadPlugin(entry.name, f"{entry.value} is no module")
        found[entry.name] = loaded
    return found


def _identity(entry: object) -> object:
    """Tell entries apart; a class or function of a module that is imported again is the one that it was."""
    name = getattr(entry, "__qualname__", None)
    return id(entry) if name is None else (_origin(entry), name)


def _origin(entry: object) -> str:
    return str(getattr(entry, "__module__", None) or type(entry).__module__)
