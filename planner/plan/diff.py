"""How two plans differ, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from planner.plan.plan import Plan


@dataclass(frozen=True)
class Change:
    """A field in which two plans differ; ``where`` is a site, or ``plan``."""

    where: str
    field: str
    a: object
    b: object


def difference(a: Plan, b: Plan) -> list[Change]:
    """Return every field in which two plans differ, the plan's own first, then site by site."""
    ours, theirs = ({decision.site: decision for decision in plan.decisions} for plan in (a, b))
    changes = [*_changes("plan", a, b), *_changes("options", a.options, b.options)]
    for site in dict.fromkeys([*ours, *theirs]):
        if site in ours and site in theirs:
            changes += _changes(site, ours[site], theirs[site])
        else:
            present = ["present" if site in plan else "absent" for plan in (ours, theirs)]
            changes.append(Change(site, "site", *present))
    return changes


def _changes(where: str, a: Any, b: Any) -> Iterator[Change]:
    """Yield the fields in which two values of a class differ, those left out that are compared on their own."""
    for field in fields(a):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        if field.name not in ("decisions", "options") and ours != theirs:
            yield Change(where, field.name, ours, theirs)
