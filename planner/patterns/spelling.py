"""Spellings: patterns and groups as text, and what a text leaves to the planner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, replace
from typing import Any

from planner.errors import BadSpelling, MalformedValue
from planner.patterns.base import PATTERNS, Pattern
from planner.patterns.fields import Numbers, PatternField

EXAMPLE = "crisscross{axes=lines,group=16x16}"
_GROUP = Numbers("group", MISSING, {"least": 1})
_OLD_NAMES = {"far": "pooled"}
"""Names of fields in plans and evidence of version 0.1, with those of today."""

_OLD_FIELD = re.compile(rf"(?<=[{{,])(\s*)({'|'.join(_OLD_NAMES)})(?=\s*=)")


@dataclass(frozen=True)
class PatternRequest:
    """A pattern as a user asks for it: what is left out is the planner's to choose.

    kind: its name in PATTERNS. given: the fields that are named, with their values.
    """

    kind: str
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def group(self) -> tuple[int, ...] | None:
        """The shape of its groups, if it is named."""
        return self.given.get("group")

    @property
    def offset(self) -> tuple[int, ...] | None:
        """The offset of its groups, if it is named."""
        return self.given.get("offset")

    def with_group(self, group: tuple[int, ...]) -> PatternRequest:
        """Return the request with the shape of its groups named."""
        return replace(self, given={**self.given, "group": group})

    def pattern(self) -> Pattern:
        """Return the one pattern that it names, with defaults for what it leaves out.

        Raises MalformedValue where it leaves out what has no default, as the group.
        """
        kind = PATTERNS[self.kind]
        for name, each in kind.fields().items():
            if each.default is MISSING and name not in self.given:
                raise MalformedValue(self.kind, f"it names no {name}", f"Write it like {kind.example()!r}.")
        return kind(**self.given).verify()

    def narrow(self, pattern: Pattern) -> Pattern | None:
        """Return a pattern of the kind with the fields that are named; None if they have other axes than its group.

        A group and an offset of other axes are left out: sites with other axes choose their own.
        """
        axes = len(pattern.group)
        given = {
            name: value for name, value in self.given.items() if name not in ("group", "offset") or len(value) == axes
        }
        narrowed = replace(pattern, **given)
        per_axis = [getattr(narrowed, name) for name in given if isinstance(given[name], tuple)]
        return narrowed if all(len(value) == axes for value in per_axis) else None


def parse_pattern(text: str) -> Pattern:
    """Read a complete spelling; ``parse_pattern(str(p)) == p``. Raises BadSpelling, UnknownName or MalformedValue."""
    return parse_request(text).pattern()


def parse_request(text: str) -> PatternRequest:
    """Read a spelling in which all but the kind may be left out: ``crisscross``, ``neighborhood{radius=2}``.

    Raises BadSpelling, and UnknownName for a kind that is not registered.
    """
    match = re.fullmatch(r"([a-z][a-z0-9_]*)\s*(?:\{(.{0,200})\})?", text.strip())
    if not match:
        kinds = ", ".join(PATTERNS)
        raise BadSpelling("pattern", text, f"it is not a kind ({kinds}) with fields in braces, or none", EXAMPLE)
    kind = PATTERNS[match[1]]
    try:
        return PatternRequest(match[1], _parse_fields(match[1], kind.fields(), match[2] or ""))
    except ValueError as fault:
        raise BadSpelling("pattern", text, str(fault), kind.example()) from None


def with_field_names_of_today(text: str) -> str:
    """Return spellings, or a text that holds some, with the old names of fields replaced."""
    return _OLD_FIELD.sub(lambda match: match[1] + _OLD_NAMES[match[2]], text)


def parse_group(text: str) -> tuple[int, ...]:
    """Read a group shape such as ``16x16`` or ``4x8x8``; raises BadSpelling."""
    try:
        return _GROUP.read(text)
    except ValueError as fault:
        raise BadSpelling("group", text, str(fault), "16x16") from None


def _parse_fields(kind: str, fields: Mapping[str, PatternField], body: str) -> Mapping[str, Any]:
    """Read the fields in braces; raises ValueError, which says what is wrong."""
    given = dict[str, Any]()
    for item in filter(None, (item.strip() for item in body.split(","))):
        spelled, equals, value = (part.strip() for part in item.partition("="))
        name = _OLD_NAMES.get(spelled, spelled)
        if not equals or not value or name in given:
            raise ValueError(f"{item!r} is not one FIELD=VALUE")
        if name not in fields:
            known = f"; it has {', '.join(fields)}" if fields else ""
            raise ValueError(f"{kind} has no field {name!r}{known}")
        given[name] = fields[name].read(value)
    return given
