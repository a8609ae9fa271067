"""Registries: named things of one kind, which a plug-in can add to.

A plug-in is a module named by an entry point of the group ``planner.plugins``. It is imported when a registry is first
looked into, and adds what it has by ``REGISTRY.register``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

from planner.errors import BadPlugin, UnknownName

GROUP = "planner.plugins"
"""The group of entry points that name plug-ins."""

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Entries of one kind by name, the project's own first, then those of plug-ins.

    kind: what an entry is, for messages: ``pattern``. builtin: modules that register the project's own entries,
    imported when the registry is first looked into.
    """

    def __init__(self, kind: str, builtin: Sequence[str] = ()) -> None:
        self.kind = kind
        self._builtin = tuple(builtin)
        self._entries = dict[str, T]()
        self._is_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds an entry under a name and returns it; raises BadPlugin where the name is
        taken."""

        def add(entry: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and taken is not entry:
                raise BadPlugin(_origin(entry), f"it registers the {self.kind} {name!r}, which {_origin(taken)} has")
            self._entries[name] = entry
            return entry

        return add

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
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True  # a module that registers may look things up
        for module in self._builtin:
            importlib.import_module(module)
        plugins()


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


def _origin(entry: object) -> str:
    return str(getattr(entry, "__module__", None) or type(entry).__module__)
