"""Planning a model of the catalogue, or of a folder, at a size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from planner.api import compile as compile_planned
from planner.api import make_plan
from planner.errors import BadSize
from planner.models.catalogue import build, default_size, scale_of
from planner.models.inputs import example_inputs
from planner.plan.options import Options
from planner.plan.plan import Plan

if TYPE_CHECKING:
    from planner.runtime.model.compiled import Report
    from planner.runtime.model.measurement import Measurement


def parse_size(text: str) -> tuple[int, int]:
    """Read the (width, height) of ``8192x8192``; raises BadSize."""
    match = re.fullmatch(r"(\d{1,7})[xX×](\d{1,7})", text.strip(), re.ASCII)
    if not match or not int(match[1]) or not int(match[2]):
        raise BadSize(text, "a size is WIDTHxHEIGHT in pixels", "Write it like 1280x720.")
    return int(match[1]), int(match[2])


def measure_config(
    model: str,
    config: Mapping[str, Any],
    size: tuple[int, int] | None,
    frames: int | None,
    backend: str,
    rounds: int,
    options: Options,
) -> tuple[Report, Measurement]:
    """Measure a configuration with random weights, dense against planned: in bf16 on a GPU, in float32 on a CPU."""
    from planner.runtime.model.compiled import measure, report

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    (own_size, own_frames), scale = default_size(model), scale_of(model)
    shape = size or own_size, own_frames if frames is None else frames
    inputs = example_inputs(config, *shape, device=device, dtype=dtype, scale=scale)
    planned = compile_planned(build(config, device, dtype), backend=backend, **asdict(options))  # type: ignore[arg-type]
    measurement = measure(planned, **inputs, rounds=rounds)
    return report(planned), measurement


def plan_config(
    model: str,
    config: Mapping[str, Any],
    size: tuple[int, int] | None,
    frames: int | None,
    batch: int,
    target: str,
    options: Options,
) -> Plan:
    """Plan a configuration in bf16 on the meta device; size and frames default to the model's own."""
    own_size, own_frames = default_size(model)
    inputs = example_inputs(
        config, size or own_size, own_frames if frames is None else frames, batch=batch, scale=scale_of(model)
    )
    return make_plan(build(config, dtype=torch.bfloat16), kwargs=inputs, target=target, **asdict(options))  # type: ignore[arg-type]
