"""Fields: what one field of a pattern takes and how it is spelled, which follow from its type::

    tuple[int, ...]             numbers joined by x, one an axis: 8x8
    int                         a number: 2
    Literal["lines", "planes"]  one of the words: lines
    bool                        a word where it is true: mean; left out where it is false

The metadata of a dataclass field says what its type does not: ``least``, the least number (0 if left out);
``is_spread``, that one number stands for every axis; ``word``, what a true bool is spelled as (``yes`` if left out).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from planner.errors import MalformedValue, clip
from planner.shapes import times

MAX_NUMBER = 2**20


@dataclass(frozen=True)
class PatternField(ABC):
    """A field of a pattern: how its values are read and written.

    default: MISSING where a pattern cannot do without it. metadata: see above.
    """

    name: str
    default: Any
    metadata: Mapping[str, Any]

    @property
    def least(self) -> int:
        """The least number it takes."""
        return self.metadata.get("least", 0)

    @property
    def is_spread(self) -> bool:
        """Whether one number stands for every axis."""
        return self.metadata.get("is_spread", False)

    @property
    @abstractmethod
    def example(self) -> Any:
        """A value that it takes."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """Return the value that a text spells; raises ValueError, which says what the field takes."""

    @abstractmethod
    def write(self, value: Any) -> str:
        """Return what a value is spelled as; empty for one that is left out of a spelling."""

    def _number(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 7 and self.least <= int(text) <= MAX_NUMBER):
            fault = f"{self.name}={clip(text)}: each number lies between {self.least} and {MAX_NUMBER}"
            raise ValueError(fault)
        return int(text)


class Numbers(PatternField):
    """One to three numbers, one an axis."""

    @property
    def example(self) -> tuple[int, ...]:
        """Those of groups of 16x16."""
        return (max(self.least, 16),) * 2

    def read(self, text: str) -> tuple[int, ...]:
        parts = text.strip().split("x")
        if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"{self.name}={clip(text)} is not one to three numbers joined by x")
        return tuple(map(self._number, parts))

    def write(self, value: tuple[int, ...]) -> str:
        return str(value[0]) if self.is_spread and len(set(value)) == 1 else times(value)


class Number(PatternField):
    """A whole number."""

    @property
    def example(self) -> int:
        """The least."""
        return self.least

    def read(self, text: str) -> int:
        return self._number(text)

    def write(self, value: int) -> str:
        return str(value)


@dataclass(frozen=True)
class Word(PatternField):
    """One of several words."""

    words: tuple[str, ...]

    @property
    def example(self) -> str:
        """The first."""
        return self.words[0]

    def read(self, text: str) -> str:
        if text not in self.words:
            raise ValueError(f"{self.name} is {' or '.join(self.words)}, not {clip(text)!r}")
        return text

    def write(self, value: str) -> str:
        return value


class Flag(PatternField):
    """A word that is there or is left out."""

    @property
    def example(self) -> bool:
        """That it is left out."""
        return False

    @property
    def word(self) -> str:
        """What it is spelled as where it is true."""
        return self.metadata.get("word", "yes")

    def read(self, text: str) -> bool:
        if text != self.word:
            raise ValueError(f"{self.name} is {self.word}, or left out, not {clip(text)!r}")
        return True

    def write(self, value: bool) -> str:
        return self.word if value else ""


def fields_of(pattern: type) -> dict[str, PatternField]:
    """Return the fields that a pattern's ``__init__`` takes, by name; raises MalformedValue for one of another type."""
    hints = get_type_hints(pattern)
    return {each.name: _field(pattern, each, hints[each.name]) for each in dataclasses.fields(pattern) if each.init}


def _field(pattern: type, each: dataclasses.Field[Any], hint: Any) -> PatternField:
    default = each.default if each.default_factory is MISSING else each.default_factory()
    given = (each.name, default, each.metadata)
    if get_origin(hint) is Literal:
        return Word(*given, words=get_args(hint))
    kinds: dict[Any, type[PatternField]] = {bool: Flag, int: Number, tuple[int, ...]: Numbers}
    if hint not in kinds:
        fault = f"its field {each.name} is of a type that has no spelling, {hint}"
        raise MalformedValue(f"the pattern {pattern.__name__}", fault, "Take int, bool, tuple[int, ...] or Literal.")
    return kinds[hint](*given)
