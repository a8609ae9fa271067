"""Model families: full-size public configurations, the inputs that pipelines give them, and small trained models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.models.emoji.reference import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    try:
        from planner.models.emoji.reference import load
    except ModuleNotFoundError as error:
        from planner.extras import missing

        raise missing(error, "the small trained models") or error from None
    return load
