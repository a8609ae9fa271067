"""Tuning: the fastest config of a kernel on this device, measured within a time budget and stored with provenance."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from planner.codegen.spec.body import make_spec
from planner.codegen.spec.candidates import candidates, choose_config
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.launch_plan import HeadRouting
from planner.codegen.spec.problem import Problem
from planner.errors import BadSpelling
from planner.plan.atomic_write import write_text
from planner.runtime.kernels.cache import Cache, build, toolchain
from planner.runtime.measure import device_seconds, interleaved

FILE = "tuned.json"
ROUNDS = 7


@dataclass(frozen=True)
class Trial:
    """A config and its median time for one launch."""

    config: KernelConfig
    milliseconds: float


def tune(problem: Problem, device: torch.device, seconds: float) -> list[Trial]:
    """Time the candidates of a problem on a device, fastest first, and remember the winner.

    Configs are tried in the order in which they are expected to win, until the seconds are spent; launches are
    interleaved, on random data. Raises what compilation and launching raise.
    """
    end = time.monotonic() + seconds
    launches = dict[KernelConfig, Any]()
    for config in candidates(problem):
        if launches and time.monotonic() > end:
            break
        launches[config] = _launch(make_spec(problem, config), device)
    taken = interleaved(launches, ROUNDS, device_seconds)
    trials = [Trial(config, seconds * 1e3) for config, seconds in taken.items()]
    trials.sort(key=lambda trial: trial.milliseconds)
    _remember(problem, trials, device)
    return trials


def configured(problem: Problem) -> KernelSpec:
    """Return a problem's spec with the config that tuning found, or else the first candidate; raises NoKernel."""
    return make_spec(problem, tuned_config(problem) or choose_config(problem))


def tuned_config(problem: Problem) -> KernelConfig | None:
    """Return the config that tuning found for a problem with this version of the code, None if it was not tuned."""
    entry = _read().get(problem.digest)
    if not isinstance(entry, dict) or entry.get("code") != toolchain()["code"]:
        return None
    try:
        config = KernelConfig.parse(str(entry.get("config")))
    except BadSpelling:
        return None
    return config if why_not(config, problem) is None else None


def _launch(spec: KernelSpec, device: torch.device) -> Any:
    from planner.runtime.cuda.launch import Kernel
    from planner.runtime.cuda.parameters import RoutingArguments

    made = build(spec)
    kernel = Kernel(made.emitted, made.binary, device)

    def randn(name: str, heads: int, tokens: int) -> torch.Tensor:
        made = torch.randn(spec.batch, heads, tokens, spec.head_dim, device=device)
        return made.to(spec.dtypes.of(name).of_tensors)

    query = randn("q", spec.heads, spec.queries)
    key, value = (randn(letter, spec.kv_heads, spec.keys) for letter in "kv")
    lse = torch.empty(query.shape[:3], device=device)
    mask = torch.ones(spec.batch, spec.keys, dtype=torch.bool, device=device)
    out = torch.empty_like(query, dtype=spec.dtypes.out.of_tensors)
    tensors = {"q": query, "k": key, "v": value, "o": out, "lse": lse, "key_mask": mask}
    tensors |= {f"{letter}_scale": torch.ones((), device=device) for letter in spec.scales}
    for kind, rows in spec.mean_rows.items():
        for letter in "kv":
            name = f"{letter}_means" if spec.only_means else f"{letter}_means_{kind}"
            tensors[name] = randn(letter, spec.kv_heads, rows)
    tensors["mean_bias"] = torch.zeros(spec.batch * sum(spec.mean_rows.values()) + spec.config.block_n, device=device)
    routing_args = (
        RoutingArguments(HeadRouting.in_turn(spec), torch.zeros((), device=device)) if spec.has_head_table else None
    )
    return lambda: kernel.run(tensors, spec.head_dim**-0.5, routing_args)


def _remember(problem: Problem, trials: list[Trial], device: torch.device) -> None:
    known = {**_read(), problem.digest: dict(_entry(problem, trials, device))}
    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=1) + "\n")
    _read.cache_clear()


def _entry(problem: Problem, trials: list[Trial], device: torch.device) -> Iterator[tuple[str, Any]]:
    yield "config", str(trials[0].config)
    yield "milliseconds", {str(trial.config): round(trial.milliseconds, 4) for trial in trials}
    yield "problem", asdict(problem)
    yield "device", torch.cuda.get_device_name(device)
    yield "torch", torch.__version__
    yield "date", date.today().isoformat()
    yield from toolchain().items()


def _path() -> Path:
    return Cache().directory / FILE


@lru_cache(maxsize=1)
def _read() -> dict[str, Any]:
    try:
        found = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
