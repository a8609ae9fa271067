"""A small file or text causes little work: sizes are bounded by the work that they cause."""

import contextlib
import json
import struct
import time
from itertools import pairwise

import pytest
from examples import site
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadEvidence, BadPlanFile, BadSpelling, MalformedValue, PlannerError
from planner.patterns.groups import MAX_GROUPS, GroupGrid
from planner.patterns.rules import MAX_HEADS, MAX_RANGES, Rules
from planner.patterns.spelling import parse_request
from planner.plan.evidence import Evidence
from planner.plan.noise_level import NoiseLevel
from planner.plan.options import Options
from planner.plan.plan import MAX_SLOTS, Plan
from planner.plan.target import Target
from planner.search.decide import decide

QUICK = 1.0
"""Seconds; what is refused takes milliseconds."""

PLAN = json.loads(
    Plan("Model", "x=1x2", "h100", Options(), decide([site()], Options(), Target.named("h100")), None, 1, 1.0).to_json()
)


def with_decision(**changes):
    """Return the text of a plan whose one decision has other values."""
    return json.dumps({**PLAN, "decisions": [{**PLAN["decisions"][0], **changes}]})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"heads": 10**9, "pattern": "dense"}, "it is for 1000000000 heads"),
        ({"heads": 2**99, "pattern": "dense"}, "it is for 6338253001141147007483516026"),
        ({"heads": 0, "kv_heads": 0, "pattern": "dense"}, "it is for 0 heads"),
        ({"batch": MAX_SLOTS}, "heads in the whole batch are not 1 to"),
        ({"batch": 0}, "0 heads in the whole batch"),
        ({"kv_heads": 10**6}, "it has 1000000 key heads"),
        ({"dtype": "nonsense"}, "'nonsense' is no dtype of torch"),
        ({"dtype": "__class__"}, "'__class__' is no dtype of torch"),
    ],
)
def test_a_plan_that_asks_for_too_much_is_refused(changes, fault):
    start = time.perf_counter()
    with pytest.raises(BadPlanFile, match=fault):
        Plan.from_json(with_decision(**changes))
    assert time.perf_counter() - start < QUICK


BLANKS = " " * 65_000


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (Rules.parse, BLANKS + "["),
        (Rules.parse, "dense" + BLANKS + "x"),
        (Rules.parse, "dense[" + "1," * 30_000),
        (Rules.parse, f"dense[heads=0-{MAX_HEADS - 1}];" * 3_000),
        (parse_request, "dense" + BLANKS + "x"),
        (parse_request, BLANKS + "{" + BLANKS),
        (NoiseLevel.parse, "timestep" + BLANKS + "x"),
        (NoiseLevel.parse, "1" + BLANKS + "-" + BLANKS + "-"),
    ],
)
def test_a_long_text_is_refused_at_once(parse, text):
    start = time.perf_counter()
    with pytest.raises((BadSpelling, MalformedValue)):
        parse(text)
    assert time.perf_counter() - start < QUICK


@given(
    st.sampled_from([Rules.parse, parse_request, NoiseLevel.parse]),
    st.lists(st.sampled_from("[]{}=,;:-0 1ax\n/"), max_size=9),
    st.integers(1, 4_000),
)
def test_reading_takes_time_that_grows_with_the_text(parse, parts, repeats):
    text = "".join(part * repeats for part in parts)
    start = time.perf_counter()
    with contextlib.suppress(PlannerError):
        parse(text)
    assert time.perf_counter() - start < QUICK


def test_ranges_of_noise_levels_are_bounded():
    ends = [number / (MAX_RANGES + 1) for number in range(MAX_RANGES + 2)]
    spelled = "; ".join(f"dense[noise={a:.6f}:{b:.6f}]" for a, b in pairwise(ends))
    with pytest.raises(MalformedValue, match=f"it has {MAX_RANGES + 1} ranges of noise levels"):
        Rules.parse(spelled).verify(24)


def test_groups_are_bounded():
    assert GroupGrid((2**12, 2**12), (1, 1)).verify()
    with pytest.raises(MalformedValue, match=f"are {2 * MAX_GROUPS}"):
        GroupGrid((2**13, 2**12), (1, 1)).verify()


def test_evidence_with_a_huge_description_is_refused_unread(tmp_path):
    path = tmp_path / "e.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**26) + b"{}")
        file.truncate(2**26 + 8)  # nothing is written on disk
    with pytest.raises(BadEvidence, match="Its description is larger than 32 MiB"):
        Evidence.load(path)
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(BadEvidence, match="It cannot be read: it is no whole safetensors file"):
        Evidence.load(path)
