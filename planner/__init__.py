"""Training-free attention sparsity for visual generative transformers: ``planner.compile(model)``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from planner._version import __version__ as __version__

if TYPE_CHECKING:
    from planner.api import allocate as allocate
    from planner.api import compile as compile
    from planner.api import make_plan as make_plan
    from planner.api import record as record
    from planner.api import transfer as transfer
    from planner.api import tune as tune
    from planner.errors import PlannerError as PlannerError
    from planner.patterns.base import Pattern as Pattern
    from planner.patterns.crisscross import CrissCross as CrissCross
    from planner.patterns.dense import Dense as Dense
    from planner.patterns.layout import TokenLayout as TokenLayout
    from planner.patterns.neighborhood import Neighborhood as Neighborhood
    from planner.patterns.rules import Rules as Rules
    from planner.patterns.spelling import parse_pattern as parse_pattern
    from planner.plan.evidence import Evidence as Evidence
    from planner.plan.options import Options as Options
    from planner.plan.plan import Decision as Decision
    from planner.plan.plan import Plan as Plan
    from planner.plan.quality import Certificate as Certificate
    from planner.plan.quality import Quality as Quality
    from planner.plan.target import Target as Target
    from planner.runtime.model.compiled import Report as Report
    from planner.runtime.model.compiled import disable as disable
    from planner.runtime.model.compiled import enable as enable
    from planner.runtime.model.compiled import measure as measure
    from planner.runtime.model.compiled import report as report
    from planner.runtime.model.measurement import Measurement as Measurement


# Torch takes seconds to import; `planner --help` and a bare `import planner` do without it.
_HOMES = {
    "allocate": "planner.api",
    "compile": "planner.api",
    "make_plan": "planner.api",
    "record": "planner.api",
    "transfer": "planner.api",
    "tune": "planner.api",
    "Options": "planner.plan.options",
    "PlannerError": "planner.errors",
    "Evidence": "planner.plan.evidence",
    "TokenLayout": "planner.patterns.layout",
    "CrissCross": "planner.patterns.crisscross",
    "Dense": "planner.patterns.dense",
    "Neighborhood": "planner.patterns.neighborhood",
    "Pattern": "planner.patterns.base",
    "parse_pattern": "planner.patterns.spelling",
    "Decision": "planner.plan.plan",
    "Plan": "planner.plan.plan",
    "Certificate": "planner.plan.quality",
    "Quality": "planner.plan.quality",
    "Rules": "planner.patterns.rules",
    "Target": "planner.plan.target",
    "Report": "planner.runtime.model.compiled",
    "Measurement": "planner.runtime.model.measurement",
    "disable": "planner.runtime.model.compiled",
    "enable": "planner.runtime.model.compiled",
    "measure": "planner.runtime.model.compiled",
    "report": "planner.runtime.model.compiled",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
