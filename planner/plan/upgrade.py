"""Files of older versions, brought to the fields of today one version at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planner.errors import BadPlanFile, MalformedValue, PlannerError, PlanVersion
from planner.patterns.rules import Rules
from planner.patterns.spelling import parse_pattern

PLAN_VERSION = 4
EVIDENCE_VERSION = 2

Record = dict[str, Any]
Step = Callable[[Record], Record]
"""Takes what a file of one version holds, and returns what one of the next version would."""


def upgrade_plan(parsed: Any, name: str) -> Any:
    """Return what a plan's file of any version holds as one of today would; raises BadPlanFile or PlanVersion."""
    return _upgrade(parsed, name, _PLAN_STEPS)


def upgrade_evidence(parsed: Any, name: str) -> Any:
    """Return the same of evidence, with the plan that it holds."""
    upgraded = _upgrade(parsed, name, _EVIDENCE_STEPS)
    return {**upgraded, "plan": upgrade_plan(upgraded.get("plan"), name)}


def _upgrade(parsed: Any, name: str, steps: Mapping[int, Step]) -> Any:
    if not isinstance(parsed, dict) or "version" not in parsed:
        raise BadPlanFile(name, "it has no version")
    newest, version = max(steps) + 1, parsed["version"]
    if type(version) is not int or not 1 <= version <= newest:
        raise PlanVersion(name, version, newest)
    for each in range(version, newest):
        try:
            parsed = {**steps[each](parsed), "version": each + 1}
        except KeyError as error:
            raise BadPlanFile(name, f"{error} is missing, which files of version {each} have") from None
        except PlannerError as error:
            raise BadPlanFile(name, error.in_a_line()) from error
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise BadPlanFile(name, f"it does not have the fields of version {each}") from None
    return parsed


def _plan_1_to_2(plan: Record) -> Record:
    """Version 2 has gates: sites that are dense above a noise level."""
    options = {"sparse_below": 1.0, "noise": None, **plan["options"]}
    decisions = [{"sparse_below": 1.0, **decision} for decision in _decisions(plan)]
    return {"noise": None, **plan, "options": options, "decisions": decisions}


def _plan_2_to_3(plan: Record) -> Record:
    """Version 3 spells gates as rules, and counts the noise levels above them in densities and costs."""
    options = {"alternate_offsets": False, **plan["options"]}  # which version 2 got late
    return {**plan, "options": options, "decisions": list(map(_with_rules, _decisions(plan)))}


def _plan_3_to_4(plan: Record) -> Record:
    """Version 4 says toolchain in certificates, which version 3 got late."""
    certificate = plan.get("certificate")
    return {**plan, "certificate": None if certificate is None else _with_toolchain(certificate)}


def _with_rules(decision: Record) -> Record:
    """Return a decision on a pattern up to a noise level as one on rules."""
    rest = dict(decision)
    level = rest.pop("sparse_below")
    if type(level) not in (int, float) or not 0 < level <= 1:
        raise MalformedValue("decision", f"sparse_below is {level!r}", "Plan again.", where=str(rest["site"]))
    rules = Rules.uniform(parse_pattern(rest["pattern"]), level)
    if rules.levels:
        (share,) = rules.levels
        rest["density"] = share * rest["density"] + (1 - share)
        rest["flops"] = round(share * rest["flops"] + (1 - share) * rest["dense_flops"])
        rest["seconds"] = share * rest["seconds"] + (1 - share) * rest["dense_seconds"]
    return {**rest, "pattern": str(rules)}


def _with_toolchain(record: Record) -> Record:
    """Return a record that says toolchain where it said made_by."""
    rest = dict(record)
    toolchain = rest.pop("made_by")
    return {**rest, "toolchain": toolchain}


def _decisions(plan: Record) -> list[Record]:
    decisions = plan["decisions"]
    if not isinstance(decisions, list):
        raise MalformedValue("plan", "'decisions' is not a list", "Plan again.")
    return decisions


_PLAN_STEPS: Mapping[int, Step] = {1: _plan_1_to_2, 2: _plan_2_to_3, 3: _plan_3_to_4}
_EVIDENCE_STEPS: Mapping[int, Step] = {1: _with_toolchain}
