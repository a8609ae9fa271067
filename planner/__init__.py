"""Training-free attention sparsity for visual generative transformers: ``planner.compile(model)``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.api import allocate as allocate
    from planner.api import compile as compile
    from planner.api import make_plan as make_plan
    from planner.api import record as record
    from planner.api import transfer as transfer
    from planner.api import tune as tune
    from planner.choose import Options as Options
    from planner.errors import PlannerError as PlannerError
    from planner.evidence import Evidence as Evidence
    from planner.layout import TokenLayout as TokenLayout
    from planner.pattern import CrissCross as CrissCross
    from planner.pattern import Dense as Dense
    from planner.pattern import Neighborhood as Neighborhood
    from planner.pattern import Pattern as Pattern
    from planner.pattern import parse_pattern as parse_pattern
    from planner.plan import Decision as Decision
    from planner.plan import Plan as Plan
    from planner.quality import Certificate as Certificate
    from planner.quality import Quality as Quality
    from planner.rules import Rules as Rules
    from planner.target import Target as Target
    from runtime.compiled import Report as Report
    from runtime.compiled import report as report

__version__ = "0.1.0"

# Torch takes seconds to import; `planner --help` and a bare `import planner` do without it.
_HOMES = {
    "allocate": "planner.api",
    "compile": "planner.api",
    "make_plan": "planner.api",
    "record": "planner.api",
    "transfer": "planner.api",
    "tune": "planner.api",
    "Options": "planner.choose",
    "PlannerError": "planner.errors",
    "Evidence": "planner.evidence",
    "TokenLayout": "planner.layout",
    "CrissCross": "planner.pattern",
    "Dense": "planner.pattern",
    "Neighborhood": "planner.pattern",
    "Pattern": "planner.pattern",
    "parse_pattern": "planner.pattern",
    "Decision": "planner.plan",
    "Plan": "planner.plan",
    "Certificate": "planner.quality",
    "Quality": "planner.quality",
    "Rules": "planner.rules",
    "Target": "planner.target",
    "Report": "runtime.compiled",
    "report": "runtime.compiled",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
