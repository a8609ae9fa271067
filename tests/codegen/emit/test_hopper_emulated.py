"""Emitted Hopper kernels on the CPU, thread by thread, against masked dense attention."""

import math
import sys
from dataclasses import replace

import hopper_emulator as hopper
import listed
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from kernel_specs import PAIRS, problem, routing_args
from oracle import means_of, of_heads
from strategies import grids

from planner.codegen.emit.bodies import emit
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.launch_plan import HeadRouting
from planner.codegen.tiling.group_means import kind_of_groups
from planner.codegen.tiling.query_tiles import pair_axis
from planner.codegen.tiling.stream_k import make_schedule
from planner.patterns.crisscross import CrissCross
from planner.patterns.layout import GlobalTokens, TokenLayout
from planner.patterns.neighborhood import Neighborhood


def means(spec, k, v, mask):
    """Compute the outputs of a kernel of means, by its arguments' names."""
    biases, given = list[torch.Tensor](), dict[str, torch.Tensor]()
    for pattern in spec.patterns:
        kind = kind_of_groups(pattern)
        if not pattern.pooled or f"k_means_{kind}" in given:
            continue
        belongs, _ = means_of(spec.keys, spec.token_layout, pattern)
        belongs = (belongs * mask[:, None]).float()
        counts = belongs.sum(2)
        biases.append(counts.log() * math.sqrt(spec.head_dim))
        shares = (belongs / counts[..., None].clamp(min=1))[:, None]
        given |= {f"{letter}_means_{kind}": (shares @ x).flatten(0, 1) for letter, x in (("k", k), ("v", v))}
    past = torch.full((spec.config.block_n,), math.nan)  # the kernel reads biases a whole tile at a time
    return given | {"mean_bias": torch.cat([torch.cat(biases, 1).flatten(), past]) if biases else past}


def run(spec, routed=None, seed=0, steep=1.0, queries=1.0):
    """Launch twice and compare; what is not routed must stay as it was.

    steep: how much greater the last scores are. queries: how much greater each query's are.
    """
    torch.manual_seed(seed)
    emitted, slots = emit(spec), spec.batch * spec.heads
    q = torch.randn(spec.batch, spec.heads, spec.queries, spec.head_dim)
    k, v = (torch.randn(spec.batch, spec.kv_heads, spec.keys, spec.head_dim) for _ in "kv")
    q *= queries
    k *= torch.linspace(1.0, steep, spec.keys)[:, None]
    mask = torch.rand(spec.batch, spec.keys) < 0.7 if spec.key_mask else torch.ones(spec.batch, spec.keys).bool()
    given = {letter: x.flatten(0, 1) for letter, x in (("q", q), ("k", k), ("v", v))} | means(spec, k, v, mask)
    given |= {f"{letter}_last": 0 for letter in "qkvo"} | {"key_mask": mask}
    given |= {
        "o": torch.full((slots, spec.queries, spec.head_dim), math.nan),
        "scale_log2": spec.head_dim**-0.5 / math.log(2),
    }
    given |= {"lse": torch.full((slots, spec.queries), math.nan), "arrivals": torch.zeros(emitted.arrivals + 1).int()}
    given |= {"work_counter": torch.zeros(1 + emitted.retry_flags).int()}
    partial_rows = emitted.partial_rows
    if routed is not None:
        table = HeadRouting((), (tuple(routed.items()),)).table(spec)
        partial_rows = table.partial_rows
        given |= routing_args(table, [0.0])
    given |= {
        "partials": torch.full((partial_rows * spec.head_dim + 1,), math.nan),
        "partial_lse": torch.full((partial_rows + 1,), math.nan),
    }
    for again in range(2):
        hopper.launch(emitted, given, seed + again)
    assert not given["arrivals"].any()
    assert not given["work_counter"].any()
    out, lse = of_heads(spec, q, k, v, mask, routed)
    # Float32 scores are as far off as they are great.
    great = steep * float(torch.as_tensor(queries).max())
    near = {"rtol": 1e-4 * great, "atol": 1e-5 * great, "equal_nan": True}
    torch.testing.assert_close(given["o"].view(q.shape).double(), out, **near)
    if spec.returns_lse:
        torch.testing.assert_close(given["lse"].view(q.shape[:3]).double(), lse, **near)


GROUPS = {
    "pairs": [(8, 8), (4, 16), (2, 4, 8), (1, 8, 8), (64,)],
    "sm90": [(8, 16), (2, 8, 8), (128,), (16, 16), (4, 8, 8)],
}
steepness = st.sampled_from([1.0, 40.0])


@st.composite
def kernels(draw, body, several=False):
    """(problem, config) of a small kernel, and for one of several patterns the heads that it serves."""
    group = draw(st.sampled_from(GROUPS[body]))
    extents = [draw(st.integers(side, 2 * side + 3)) for side in group]
    if body == "pairs":
        even = draw(st.integers(0, len(group) - 1))
        extents[even] = group[even] * draw(st.sampled_from([2, 4])) - draw(st.integers(0, group[even] // 2))
    text = [GlobalTokens("a", draw(st.integers(1, 150)))] * draw(st.booleans())
    layout = TokenLayout((*text, draw(grids(tuple(extents))))).verify()
    # Pairs that have no keys in common are refused: text or a radius along their axis gives them some.
    axis = pair_axis(layout, CrissCross(group), 128)
    radius = tuple(draw(st.integers(int(not text and at == axis), 2)) for at in range(len(group)))
    kinds = [Neighborhood(group, radius, "clamp"), CrissCross(group, "lines"), CrissCross(group, "planes")]
    kinds += [Neighborhood(group, radius, "clamp", pooled=True), CrissCross(group, "lines", pooled=True)]
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3 if several else 1, unique_by=str))
    spelled = [str(pattern) for pattern in chosen] + ["dense"] * (several and draw(st.booleans()))
    block_m = draw(st.sampled_from([128, 256])) if math.prod(group) == 256 else 128
    block_n = 128 if body == "pairs" else draw(st.sampled_from([64, 128])) if block_m == 128 else 64
    asked = problem(
        str(layout), "; ".join(spelled), heads=2, head_dim=64, batch=draw(st.sampled_from([1, 2])),
        kv_heads=draw(st.sampled_from([1, 2])), num_sms=draw(st.sampled_from([1, 2, 4])), returns_lse=True,
        key_mask=draw(st.booleans()), has_head_table=several,
    )  # fmt: skip
    spec = make_spec(asked, KernelConfig(body, block_m, block_n, 4, draw(st.integers(4 + (body == "pairs"), 9))))
    reason = why_not(spec.config, asked)
    assert reason is None or "share no tile of keys" in reason
    assume(reason is None)
    slots = [slot for slot in range(spec.slots) if draw(st.booleans())]
    return spec, {slot: draw(st.integers(0, len(spelled) - 1)) for slot in slots} if several else None


quickly = settings(max_examples=4, phases=[Phase.explicit, Phase.generate])  # shrinking would wait for each deadlock


@quickly
@given(kernels("sm90"), st.integers(0, 1000), steepness)
def test_tiles_of_one_group(drawn, seed, steep):
    run(*drawn, seed, steep)


@quickly
@given(kernels("pairs"), st.integers(0, 1000), steepness)
def test_pairs_of_groups(drawn, seed, steep):
    run(*drawn, seed, steep)


@quickly
@given(
    st.sampled_from(sorted(GROUPS)).flatmap(lambda body: kernels(body, several=True)), st.integers(0, 1000), steepness
)
def test_heads_of_several_patterns(drawn, seed, steep):
    run(*drawn, seed, steep)


@pytest.mark.parametrize("text", [64, 128])
def test_pairs_that_read_an_even_or_an_odd_number_of_boxes(text):
    """Of an odd number each group has one left, which comes first. 64 tokens of text make all keys 17 boxes."""
    asked = problem(f"a:{text} | h:32 w:32", "neighborhood{radius=1,edge=clamp,group=8x8}", heads=1, head_dim=64)
    run(make_spec(replace(asked, num_sms=3), KernelConfig.parse(PAIRS)))


@pytest.mark.parametrize(("config", "group"), [(PAIRS, "8x8"), ("sm90{m=128,n=64,warps=4,stages=4}", "8x16")])
def test_more_key_tiles_than_are_found_at_once(config, group):
    asked = problem("a:130 | h:48 w:48", f"crisscross{{axes=lines,group={group}}}", heads=2, head_dim=64)
    spec = make_spec(replace(asked, num_sms=2), KernelConfig.parse(config))
    assert spec.program.iterations * spec.program.boxes > 32
    run(spec)


@pytest.mark.parametrize("half", [0, 1])
def test_one_half_of_a_pair_is_done_again(half):
    """The other half passes over all tiles, also those that either reads alone."""
    asked = problem("a:70 | h:32 w:32", "crisscross{axes=lines,group=8x8}", heads=1, head_dim=64, num_sms=1)
    spec = make_spec(asked, KernelConfig.parse(PAIRS))
    assert spec.program.average_tiles_read < spec.program.tiles_read - 1
    rows = torch.ones(2, 2, 8, 32)
    rows[:, half] = 60.0
    run(spec, queries=torch.cat([torch.ones(70), rows.flatten()])[:, None])


@pytest.mark.parametrize("num_sms", [1, 3])
@pytest.mark.parametrize("half", [0, 1])
def test_one_half_of_a_run_of_text_is_done_again(half, num_sms):
    """Of rows of text one warpgroup fails, the other has signalled its partial before or written its rows."""
    asked = problem("a:256 | h:32 w:32", "crisscross{axes=lines,group=8x16}", heads=1, head_dim=64, returns_lse=True)
    spec = make_spec(replace(asked, num_sms=num_sms), KernelConfig("sm90", 128, 128, 4, 4))
    rows = torch.ones(256 + 32 * 32)
    rows[64 * half : 256 : 128] = 60.0
    run(spec, steep=3.0, queries=rows[:, None])


def test_a_cta_that_has_row_blocks_to_fix_up_and_nothing_else():
    """It waits for the launch before too, whose counters of partials are the same."""
    asked = problem("a:256 | h:40 w:16", "neighborhood{radius=0,edge=clamp,group=8x16}", heads=1, head_dim=64)
    spec = make_spec(replace(asked, num_sms=24), KernelConfig("sm90", 128, 128, 4, 4))
    schedule = make_schedule(spec.program, 1, 24, spec.program.iterations)
    first = schedule.grid_tiles
    assert schedule.first_iteration(first // schedule.cta_group) == schedule.first_iteration(
        first // schedule.cta_group + 1
    )
    assert schedule.max_partials > 1
    run(spec)


def test_a_buffer_that_is_given_back_too_early_shows(monkeypatch):
    """The judge judges: without the wait for what a half leaves out, phases are missed."""
    asked = problem("a:1 | h:48 w:8", "crisscross{axes=lines,group=8x8}", heads=2, head_dim=64, num_sms=1)
    spec = make_spec(asked, KernelConfig.parse(PAIRS))
    emitted = emit(spec)
    broken = emitted.source.replace("    mbarrier.arrive(empty.index(stage), count=1, pred=skips)\n", "")
    assert broken != emitted.source
    monkeypatch.setattr("hopper_emulator.PATIENCE", 1.0)
    monkeypatch.setattr(sys.modules[__name__], "emit", lambda spec: replace(emitted, source=broken))
    with pytest.raises(AssertionError, match="a deadlock"):
        run(spec)


LISTED = [
    ("h:16 w:30", (8, 16)),
    ("text:70 | h:21 w:32", (8, 16)),
    ("t:5 h:8 w:19 | a:9", (2, 8, 8)),
    ("h:37 w:16", (16, 16)),
]


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(
    st.sampled_from(LISTED),
    st.integers(1, 5),
    st.booleans(),
)
def test_lists_made_at_run_time_say_which_groups_are_read(where, longest, narrow):
    layout, group = where
    config = KernelConfig("sm90", 128, 64 if narrow else 128, 4, 8)
    with listed.registered():
        pattern = str(listed.Listed(group, longest))
        asked = problem(layout, pattern, batch=2, heads=2, kv_heads=1, head_dim=64, num_sms=3, returns_lse=True)
        assert why_not(config, asked) is None
        spec = make_spec(asked, config)
        emitted = emit(spec)
        q = torch.randn(2, 2, spec.queries, 64)
        k, v = torch.randn(2, 2, 1, spec.queries, 64)
        lists = listed.random_lists(spec)
        tensors = {"q": q.flatten(0, 1), "k": k.flatten(0, 1), "v": v.flatten(0, 1), "key_lists": lists}
        tensors |= {f"{letter}_last": 0 for letter in "qkvo"} | {"scale_log2": 0.125 / math.log(2)}
        tensors |= {"o": torch.full_like(tensors["q"], math.nan), "lse": torch.full(q.shape[:3], math.nan)}
        tensors |= {"arrivals": torch.zeros(emitted.arrivals + 1).int()}
        tensors |= {"work_counter": torch.zeros(1 + emitted.retry_flags).int()}
        tensors |= {"partials": torch.full((emitted.partial_rows * 64 + 1,), math.nan)}
        tensors |= {"partial_lse": torch.full((emitted.partial_rows + 1,), math.nan)}
        for seed in range(2):
            hopper.launch(emitted, tensors, seed)
        exact, exact_lse = listed.masked_dense(spec, q, k, v, lists)
    torch.testing.assert_close(tensors["o"].view(q.shape).double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["lse"].double(), exact_lse, rtol=1e-4, atol=1e-5)
