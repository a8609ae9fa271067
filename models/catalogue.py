"""Models of the catalogue, or of a folder with a diffusers config.json: configurations, default sizes, modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import BadModelFolder
from planner.extras import require
from planner.models.families.base import CATALOGUE, Scale

if TYPE_CHECKING:
    import torch

_MAX_BYTES = 2**20


def load_config(model: str) -> dict[str, Any]:
    """Return the configuration of a catalogue name, or of a folder with a diffusers config.json.

    Raises UnknownName or BadModelFolder.
    """
    if model not in CATALOGUE and Path(model).is_dir():
        return _read(Path(model) / "config.json")
    entry = CATALOGUE[model]
    return {"_class_name": entry.class_name, **entry.config}


def default_size(model: str) -> tuple[tuple[int, int], int]:
    """Return ((width, height), frames) where the caller names none: the model's own, 1024 by 1024 for a folder."""
    entry = CATALOGUE.get(model)
    return (entry.size, entry.frames) if entry else ((1024, 1024), 1)


def scale_of(model: str) -> Scale | None:
    """Return the scale of a catalogue name where it is its own; None for the scale of its family."""
    entry = CATALOGUE.get(model)
    return entry.scale if entry else None


def build(config: Mapping[str, Any], device: str = "meta", dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Build a model from its configuration, with random weights, or on the meta device with none.

    Raises MissingDependency, and BadModelFolder for a class that diffusers lacks.
    """
    import torch

    diffusers = require("diffusers", "building a model from its configuration")
    name = str(config["_class_name"])
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise BadModelFolder(name, f"diffusers {diffusers.__version__} has no model class {name!r}")
    with torch.device(device):
        model = cls.from_config(dict(config)).eval()  # type: ignore[attr-defined]
    # diffusers' own `to` warns about casting weights, and a model on the meta device has none.
    return model if dtype is None else torch.nn.Module.to(model, dtype)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadModelFolder(str(path.parent), f"config.json: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise BadModelFolder(str(path.parent), "its config.json is larger than 1 MiB")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadModelFolder(str(path.parent), "its config.json is not JSON") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise BadModelFolder(str(path.parent), 'its config.json has no "_class_name"')
    return config
