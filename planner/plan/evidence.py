"""Evidence: what candidate patterns do to a model's own attention, recorded on real inputs.

For each attention site, at some calls of a sampling run: what share of the softmax mass a candidate keeps (recall), how
much it changes the site's output (error), head by head; and how much a change of a site's output changes the model's
(sensitivity). With the dense plan of the recorded inputs it is all that choosing needs: neither the model nor a device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from planner.errors import BadEvidence, BadPlanFile, PlannerError, PlanVersion
from planner.extras import require
from planner.patterns.rules import DIGITS
from planner.patterns.spelling import parse_pattern
from planner.plan.atomic_write import replacing
from planner.plan.plan import Plan
from planner.plan.serialization import MAX_BYTES, from_json, to_json
from planner.plan.upgrade import EVIDENCE_VERSION, upgrade_evidence

Table = torch.Tensor

LARGEST = 1e30
"""The greatest value of a table: sums of many stay finite."""


@dataclass(frozen=True)
class SiteEvidence:
    """Scores of one site's candidates, means over batch and sampled queries of the grid.

    candidates: spellings. recall: (calls, candidates, heads), in [0, 1]. error: (calls, candidates, heads), mean over
    queries of the squared length of the change of a head's output. power: (calls, heads), the same of the dense output.
    sensitivity: (calls,), mean squared change of the model's output over the error of the site, all heads together;
    not a number at calls where it was not measured.
    """

    candidates: tuple[str, ...]
    recall: Table
    error: Table
    power: Table
    sensitivity: Table


@dataclass(frozen=True)
class Evidence:
    """Evidence of a model, for the inputs of a plan that leaves every site dense.

    steps: noise levels of all calls of the sampling run, in order; recorded: which of them left evidence.
    sites: by name; sites where no pattern is possible are not among them. toolchain: versions, device, date, cases.
    """

    plan: Plan
    steps: tuple[float, ...]
    recorded: tuple[int, ...]
    sites: Mapping[str, SiteEvidence]
    toolchain: Mapping[str, str]

    def ranges(self, count: int) -> list[tuple[float, float, tuple[int, ...]]]:
        """Return ascending ranges of noise levels with as many steps in each: (end, share of steps, recorded calls).

        Fewer where steps or recorded calls are few; every range holds a recorded call.
        """
        order = sorted(range(len(self.steps)), key=lambda call: self.steps[call])
        for number in range(min(count, len(self.recorded)), 1, -1):
            cuts = [len(order) * k // number for k in range(number + 1)]
            parts = [order[a:b] for a, b in pairwise(cuts)]
            found = [tuple(at for at, call in enumerate(self.recorded) if call in part) for part in parts]
            tops = [self.steps[part[-1]] for part in parts]
            bottoms = [self.steps[part[0]] for part in parts]
            borders = list(zip(tops, bottoms[1:], strict=False))
            ends = [round((low + high) / 2, DIGITS) for low, high in borders]
            apart = all(0 < end < 1 and low <= end < high for end, (low, high) in zip(ends, borders, strict=True))
            if all(found) and apart:
                shares = [len(part) / len(order) for part in parts]
                return list(zip([*ends, 1.0], shares, found, strict=True))
        return [(1.0, 1.0, tuple(range(len(self.recorded))))]

    def verify(self) -> Evidence:
        """Return the evidence itself; raises BadEvidence, naming the site or the values at fault."""
        known = f"a {self.plan.model}"
        if not self.steps or not all(map(math.isfinite, self.steps)):
            raise BadEvidence(known, "its noise levels are not one number a call")
        if list(self.recorded) != sorted({*self.recorded} & {*range(len(self.steps))}):
            raise BadEvidence(known, f"its recorded calls are not some of {len(self.steps)}, each once, in order")
        planned = {decision.site: decision for decision in self.plan.decisions}
        for name, site in self.sites.items():
            if name not in planned:
                raise BadEvidence(name, "its plan has no such site")
            heads = planned[name].heads
            shape = (len(self.recorded), len(site.candidates), heads)
            _check_table(name, "recall", site.recall, shape, most=1 + 1e-5)
            _check_table(name, "error", site.error, shape)
            _check_table(name, "power", site.power, (shape[0], heads))
            _check_table(name, "sensitivity", site.sensitivity.nan_to_num(0.0), (shape[0],))
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the evidence as safetensors, whole or not at all; raises MissingDependency."""
        save_file = require("safetensors.torch", "keeping evidence").save_file
        tensors = {
            f"{name}/{what}": getattr(site, what).float().contiguous()
            for name, site in self.sites.items()
            for what in _TABLES
        }
        tensors["steps"] = torch.tensor(self.steps, dtype=torch.float64)
        tensors["recorded"] = torch.tensor(self.recorded, dtype=torch.int64)
        candidates = {name: site.candidates for name, site in self.sites.items()}
        description = to_json(_Description(EVIDENCE_VERSION, self.plan, candidates, self.toolchain))
        with replacing(path) as scratch:
            save_file(tensors, scratch, {"evidence": description})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Evidence:
        """Read evidence of any version; raises BadEvidence and MissingDependency."""
        name, safe_open = str(path), require("safetensors", "keeping evidence").safe_open
        try:
            _check_header(path)
            with safe_open(path, framework="pt") as file:
                text = file.metadata()["evidence"]
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dictionary
            description = from_json(text, _Description, name, upgrade_evidence)
            return Evidence(
                plan=description.plan.respelled().verify(),
                steps=tuple(tensors["steps"].tolist()),
                recorded=tuple(tensors["recorded"].tolist()),
                sites={
                    site: SiteEvidence(
                        tuple(str(parse_pattern(candidate)) for candidate in candidates),
                        *(tensors[f"{site}/{what}"] for what in _TABLES),
                    )
                    for site, candidates in description.candidates.items()
                },
                toolchain=description.toolchain,
            ).verify()
        except BadEvidence:
            raise
        except PlannerError as error:
            is_of_file = isinstance(error, BadPlanFile | PlanVersion)
            raise BadEvidence(name, error.found.removesuffix(".") if is_of_file else error.in_a_line()) from error
        except Exception as error:  # whatever else damaged files lead to
            raise BadEvidence(name, f"it cannot be read: {str(error)[:80]}") from error


@dataclass(frozen=True)
class _Description:
    """What evidence has beside its tables, as its file holds it."""

    version: int
    plan: Plan
    candidates: Mapping[str, tuple[str, ...]]
    toolchain: Mapping[str, str]


def _check_table(site: str, what: str, table: Table, shape: tuple[int, ...], most: float = LARGEST) -> None:
    """Check a table's type, shape and values, numbers from 0 to the most; raises BadEvidence."""
    if not table.is_floating_point():
        raise BadEvidence(site, f"its {what} is of {table.dtype}, not of floats")
    if tuple(table.shape) != shape:
        raise BadEvidence(site, f"its {what} has shape {tuple(table.shape)}, not {shape}")
    if not bool(((table >= 0) & (table <= most)).all()):
        fault = (
            "values that are no numbers: so did its attention" if bool(table.isnan().any()) else "a value out of range"
        )
        raise BadEvidence(site, f"its {what} holds {fault}")


def _check_header(path: str | os.PathLike[str]) -> None:
    """Refuse a file whose description does not end in it, or is larger than any is; raises BadEvidence and OSError."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size + 8 > os.stat(path).st_size:
        raise BadEvidence(str(path), "it cannot be read: it is no whole safetensors file")
    if size > 2 * MAX_BYTES:
        raise BadEvidence(str(path), f"its description is larger than {2 * MAX_BYTES >> 20} MiB")


_TABLES = ("recall", "error", "power", "sensitivity")


def mean_over(table: Table, calls: Sequence[int]) -> Table:
    """Return the mean of a table over recorded calls, those without a number left out; NaN where none has one."""
    return table[list(calls)].nanmean(0)
