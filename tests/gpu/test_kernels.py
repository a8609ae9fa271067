"""Emitted kernels on a CUDA device against masked dense attention in float64."""

import math

import listed
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import masked_dense
from strategies import problems

from planner.codegen.spec.config import KernelConfig
from planner.errors import BadAttentionInput, PlannerError
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.patterns.spelling import parse_pattern
from planner.runtime import masked_dense as reference
from planner.runtime.attention import dispatch
from planner.runtime.kernels.select import attention, kernel_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FLUX = "text:512 | h:64 w:64"
GRAT_X, GRAT_B = "crisscross{axes=lines,group=16x16}", "neighborhood{radius=1,edge=clamp,group=16x16}"
HOPPER = [
    (FLUX, GRAT_X),
    (FLUX, GRAT_B),
    ("h:48 w:80 | text:77", "neighborhood{radius=1,edge=clip,group=8x16}"),
    ("a:100 | t:5 h:13 w:24 | b:200", "crisscross{axes=planes,group=2x8x8}"),
    ("t:9 h:21 w:40", "crisscross{axes=lines,group=4x8x8}"),
    ("t:7 h:20 w:33 | text:256", "neighborhood{radius=1,edge=clamp,group=4x8x8}"),
    (FLUX, "crisscross{axes=lines,group=16x16,offset=8x8}"),
    ("t:9 h:21 w:40 | text:77", "neighborhood{radius=1,edge=clamp,group=4x8x8,offset=2x4x3}"),
    ("n:1000", "dense"),
    ("n:1500", "neighborhood{radius=2,edge=clip,group=128}"),
]


def tensors(tokens, *, batch=1, heads=4, kv_heads=None, keys=None, head_dim=64, dtype=torch.bfloat16, heads_last=True):
    """Random query, key and value, heads beside the channels or apart from them."""

    def make(count, length):
        if heads_last:
            return torch.randn(batch, length, count, head_dim, device="cuda", dtype=dtype).transpose(1, 2)
        return torch.randn(batch, count, length, head_dim, device="cuda", dtype=dtype)

    kv_heads = kv_heads or heads
    return make(heads, tokens), make(kv_heads, keys or tokens), make(kv_heads, keys or tokens)


def assert_right(q, k, v, layout, pattern, *, mask=None, rows=None, scale=None, budget=None):
    """Run the kernel on a poisoned output and compare; the budget is what low precision costs torch's own attention."""
    kernel = kernel_for(q, k, v, layout, pattern, mask is not None, True)
    q, k, v = (x if kernel.why_not(x) is None else x.contiguous() for x in (q, k, v))
    out = torch.full_like(q, math.nan)
    lse = torch.full(q.shape[:3], math.nan, device=q.device)
    for _ in range(2):  # the second launch finds the counters as the first left them
        kernel(q, k, v, out, scale or q.shape[3] ** -0.5, lse, mask)
    expected, expected_lse = masked_dense(q, k, v, layout, pattern, rows, mask, scale)
    rows = slice(None) if rows is None else rows
    error = (out[:, :, rows].double() - expected).norm() / expected.norm()
    assert error < (budget or {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 5e-6}[q.dtype])
    torch.testing.assert_close(lse[:, :, rows].double(), expected_lse, rtol=1e-4, atol=budget or 1e-4)
    assert torch.isfinite(out).all()
    return kernel, out


@settings(max_examples=15)
@given(
    problems(),
    st.sampled_from([64, 72, 80, 88, 96, 128]),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_drawn_problems(problem, head_dim, dtype, batch, heads_last, masked):
    layout, _, pattern = problem
    q, k, v = tensors(
        layout.tokens, batch=batch, heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype, heads_last=heads_last
    )
    mask = torch.rand(batch, layout.tokens, device="cuda") < 0.7 if masked else None
    assert_right(q, k, v, str(layout), str(pattern), mask=mask)


@pytest.mark.parametrize(("layout", "pattern"), HOPPER)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_hopper_body(layout, pattern, head_dim):
    q, k, v = tensors(TokenLayout.parse(layout).tokens, batch=2, heads=6, kv_heads=3, head_dim=head_dim)
    kernel, _ = assert_right(q, k, v, layout, pattern)
    if torch.cuda.get_device_capability() == (9, 0):
        assert kernel.emitted.spec.config.body == "sm90"


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        (FLUX, "crisscross{axes=lines,group=8x8}"),
        (FLUX, "neighborhood{radius=1,edge=clamp,group=8x8}"),
        ("h:45 w:45 | text:77", "neighborhood{radius=2,edge=clamp,group=8x8}"),
        ("h:32 w:70", "neighborhood{radius=1x3,edge=clamp,group=4x16,pooled=mean}"),
        ("a:100 | t:6 h:21 w:40 | b:200", "crisscross{axes=planes,group=1x8x8}"),
        ("n:2048", "neighborhood{radius=2,edge=clamp,group=64}"),
        ("t:5 h:23 w:40 | text:70", "neighborhood{radius=1,edge=clamp,group=2x4x8,pooled=mean}"),
        ("h:24 w:61 | text:77", "crisscross{axes=lines,group=8x8,pooled=mean}"),
    ],
)
@pytest.mark.parametrize("stages", [5, 6])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("masked", [False, True])
def test_pairs_of_groups(layout, pattern, stages, head_dim, masked, monkeypatch):
    if head_dim == 128 and stages == 6:
        pytest.skip("it needs more shared memory than there is")
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("its instructions are those of SM90")
    config = KernelConfig("pairs", 128, 128, 4, stages)
    monkeypatch.setattr(
        "planner.runtime.kernels.autotune.tuned_config", lambda problem: None if problem.only_means else config
    )
    tokens = TokenLayout.parse(layout).tokens
    q, k, v = tensors(tokens, batch=2, heads=6, kv_heads=3, head_dim=head_dim)
    mask = torch.rand(2, 1, 1, tokens, device="cuda") < 0.7 if masked else None
    for kept in ("_kernels", "_ready"):
        monkeypatch.setattr(f"planner.runtime.kernels.select.{kept}", {})
    made = [dispatch.attend(q, k, v, layout, pattern, attn_mask=mask, enable_gqa=True) for _ in range(3)]
    expected, _ = masked_dense(q, k, v, layout, pattern, mask=None if mask is None else mask[:, 0, 0])
    assert (made[0].double() - expected).norm() / expected.norm() < 4e-3
    assert all(torch.equal(each, made[0]) for each in made)


@pytest.mark.parametrize("head_dim", [72, 80, 88, 96, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_head_dimensions(head_dim, dtype):
    q, k, v = tensors(1536, head_dim=head_dim, dtype=dtype)
    assert_right(q, k, v, "text:512 | h:32 w:32", "crisscross{axes=lines,group=8x8}")


def test_groups_of_any_shape():
    q, k, v = tensors(30 * 47 + 5, head_dim=128)
    assert_right(q, k, v, "text:5 | h:30 w:47", "neighborhood{radius=1,edge=clip,group=7x5}")


def test_cross_lengths():
    q, k, v = tensors(300, keys=777, head_dim=128)
    assert_right(q, k, v, "n:300", "dense")


def test_tf32_where_torch_allows_it():
    q, k, v = tensors(4608, dtype=torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        kernel, _ = assert_right(q, k, v, FLUX, GRAT_X, budget=2e-3)
        assert kernel.emitted.spec.dtype == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_key_masks_hide_padded_text():
    layout, pattern = "t:6 h:24 w:40 | text:256", "neighborhood{radius=1,edge=clamp,group=2x8x8}"
    q, k, v = tensors(TokenLayout.parse(layout).tokens, batch=2, head_dim=128)
    mask = torch.ones(2, q.shape[2], dtype=torch.bool, device="cuda")
    mask[0, -200:] = False
    assert_right(q, k, v, layout, pattern, mask=mask)


def test_queries_whose_keys_are_all_masked_give_zeros():
    q, k, v = tensors(4608, head_dim=128)
    out, lse = attention(
        q, k, v, FLUX, GRAT_B, key_mask=torch.zeros(1, 4608, dtype=torch.bool, device="cuda"), returns_lse=True
    )
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_nan_reaches_the_rows_that_read_it_and_infinite_scores_behave_as_in_dense():
    q, k, v = tensors(4608, heads=1, head_dim=128)
    k[0, 0, 512 + 5] = math.nan  # in the group at (0, 0)
    out, _ = attention(q, k, v, FLUX, GRAT_B)
    expected, _ = masked_dense(q, k, v, FLUX, GRAT_B)
    assert torch.equal(out.isnan(), expected.isnan())
    k[0, 0, 512 + 5] = 0
    q.abs_()
    k[0, 0, 0:128] = -3e38  # scores of -inf in the whole first tile
    out, _ = attention(q, k, v, FLUX, GRAT_B)
    expected, _ = masked_dense(q, k, v, FLUX, GRAT_B)
    assert (out.double() - expected).norm() / expected.norm() < 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("steep", [4.0, 40.0, 400.0])
def test_scores_that_rise_far_above_the_first_ones(dtype, head_dim, steep):
    """Query tiles whose maximum the first keys do not tell are done again; so are some of those of one head in four."""
    q, k, v = tensors(4608, batch=2, heads=4, head_dim=head_dim, dtype=dtype)
    k[:, 0] *= torch.linspace(1.0, steep, 4608, device="cuda", dtype=dtype)[:, None]
    kernel, _ = assert_right(q, k, v, FLUX, GRAT_X)
    assert all(not workspace.work_counter.any() for workspace in kernel._workspaces.values())


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("pattern", [GRAT_X, "crisscross{axes=lines,group=8x8}", GRAT_B.replace("16x16", "8x8")])
def test_one_half_of_query_tiles_and_rows_of_text_is_done_again(pattern, half):
    q, k, v = tensors(4608, head_dim=128)
    text, lines = torch.zeros(4, 2, 64), torch.zeros(4, 2, 8, 64)
    text[:, half], lines[:, half] = 1, 1
    q[:, :, torch.cat([text.flatten(), lines.flatten()]).bool().cuda()] *= 40
    assert_right(q, k, v, FLUX, pattern)


def test_a_quarter_of_a_million_tokens():
    layout, tokens = "h:512 w:512", 512 * 512
    q, k, v = tensors(tokens, heads=24, head_dim=128)
    rows = torch.randint(0, tokens, (300,), device="cuda")
    rows = torch.cat([rows, torch.tensor([0, tokens - 1], device="cuda")])
    for pattern in (GRAT_B, GRAT_X):
        kernel = kernel_for(q, k, v, layout, pattern)
        out = torch.full_like(q, math.nan)
        kernel(q, k, v, out, 128**-0.5)
        for head in (0, 23):
            expected, _ = masked_dense(
                q[:, head : head + 1], k[:, head : head + 1], v[:, head : head + 1], layout, pattern, rows
            )
            error = (out[:, head : head + 1, rows].double() - expected).norm() / expected.norm()
            assert error < 4e-3
        assert torch.isfinite(out).all()


def test_launches_are_bitwise_equal():
    q, k, v = tensors(4608, heads=24, head_dim=128)
    first, _ = attention(q, k, v, FLUX, GRAT_X)
    assert all(torch.equal(attention(q, k, v, FLUX, GRAT_X)[0], first) for _ in range(20))


@pytest.mark.parametrize("pattern", [GRAT_X, "crisscross{axes=lines,group=8x8}"])
def test_launches_in_a_row_wait_for_each_other(pattern):
    _, _, v = tensors(4608, heads=24, head_dim=128)

    def chain(x, between):
        for _ in range(12):
            x, _ = attention(x, x, v, FLUX, pattern)
            between()
        return x

    for _ in range(5):  # memory holds another chain's numbers
        x, _, _ = tensors(4608, heads=24, head_dim=128)
        found = chain(x, lambda: None)
        assert torch.equal(found, chain(x, torch.cuda.synchronize))


def test_cuda_graphs_replay_with_new_values():
    q, k, v = tensors(4608, heads=24, head_dim=128)
    attention(q, k, v, FLUX, GRAT_X)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = attention(q, k, v, FLUX, GRAT_X)
    for x in (q, k, v):
        x.normal_()
    for _ in range(3):
        graph.replay()
    assert torch.equal(out, attention(q, k, v, FLUX, GRAT_X)[0])


def test_streams_do_not_share_workspaces():
    inputs = [tensors(4608, heads=24, head_dim=128) for _ in range(3)]
    expected = [attention(*x, FLUX, GRAT_X)[0] for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    made = []
    for stream, x in zip(streams * 4, inputs * 4, strict=True):
        with torch.cuda.stream(stream):
            made.append(attention(*x, FLUX, GRAT_X)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(made, expected * 4, strict=True))


def test_expanded_keys_and_values():
    q, k, v = tensors(4608, batch=2, heads=4, kv_heads=1)
    k, v = (x.expand(2, 4, 4608, 64) for x in (k, v))
    out, _ = attention(q, k, v, FLUX, GRAT_B)
    expected, _ = masked_dense(q, k, v, FLUX, GRAT_B)
    assert (out.double() - expected).norm() / expected.norm() < 4e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_device_than_the_current_one():
    q, k, v = (x.to("cuda:1") for x in tensors(4608))
    assert torch.equal(
        attention(q, k, v, FLUX, GRAT_X)[0].cpu(), attention(q.cuda(0), k.cuda(0), v.cuda(0), FLUX, GRAT_X)[0].cpu()
    )


def test_strides_that_no_tensor_map_can_describe():
    packed = torch.randn(2, 4608, 4, 3, 72, device="cuda", dtype=torch.bfloat16)
    q, k, v = (packed[:, :, :, which].transpose(1, 2) for which in range(3))
    out, _ = attention(q, k, v, FLUX, GRAT_B)
    expected, _ = masked_dense(q, k, v, FLUX, GRAT_B, torch.arange(0, 4608, 7, device="cuda"))
    assert (out[:, :, ::7].double() - expected).norm() / expected.norm() < 4e-3


BAD = {
    "dtypes": lambda q, k, v: ((q, k.half(), v, FLUX, GRAT_X), {}),
    "a device": lambda q, k, v: ((q.cpu(), k.cpu(), v.cpu(), FLUX, GRAT_X), {}),
    "a layout of another length": lambda q, k, v: ((q, k, v, "h:64 w:64", GRAT_X), {}),
    "a head dimension": lambda q, k, v: ((q[..., :20], k[..., :20], v[..., :20], FLUX, GRAT_X), {}),
    "shapes": lambda q, k, v: ((q[0], k, v, FLUX, GRAT_X), {}),
    "a scale": lambda q, k, v: ((q, k, v, FLUX, GRAT_X), {"scale": -1.0}),
    "a mask": lambda q, k, v: ((q, k, v, FLUX, GRAT_X), {"key_mask": torch.ones(3, device="cuda", dtype=torch.bool)}),
    "a group": lambda q, k, v: ((q, k, v, FLUX, "crisscross{axes=lines,group=65x16}"), {}),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_named_before_launch(fault):
    args, kwargs = BAD[fault](*tensors(4608))
    with pytest.raises(PlannerError):
        attention(*args, **kwargs)


def test_masks_for_each_query_fall_back_and_are_counted():
    q, k, v = tensors(200, dtype=torch.float32)
    mask = torch.zeros(1, 1, 1, 200, device="cuda")
    dispatch.fallbacks.clear()
    with pytest.warns(dispatch.NoKernelWarning, match="additive"):
        out = dispatch.attend(q, k, v, "h:10 w:20", "crisscross{axes=lines,group=2x5}", attn_mask=mask)
    assert list(dispatch.fallbacks.values()) == [1]
    judged, _ = masked_dense(q, k, v, "h:10 w:20", "crisscross{axes=lines,group=2x5}")
    torch.testing.assert_close(out.double(), judged, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadAttentionInput):
        dispatch.attend(q, k, v, "h:10 w:21", "crisscross{axes=lines,group=2x5}")


@pytest.mark.parametrize(
    ("layout", "pattern", "head_dim"),
    [
        (FLUX, "neighborhood{radius=1,edge=clamp,group=16x16,pooled=mean}", 128),
        ("text:5 | h:30 w:47", "crisscross{axes=lines,group=8x8,pooled=mean}", 64),
        ("t:9 h:21 w:40 | text:77", "crisscross{axes=lines,group=4x8x8,pooled=mean}", 128),
    ],
)
def test_means_of_far_groups_are_merged_in(layout, pattern, head_dim):
    q, k, v = tensors(TokenLayout.parse(layout).tokens, head_dim=head_dim)
    mask = torch.rand(1, 1, 1, q.shape[2], device="cuda") < 0.7
    for shown in (None, mask):
        ours = dispatch.attend(q, k, v, layout, pattern, attn_mask=shown)
        exact = (x.float() for x in (q, k, v))
        expected = reference.masked_dense(*exact, layout, pattern, attn_mask=shown)
        assert (ours.float() - expected).norm() / expected.norm() < 5e-3
    gated = str(Rules.uniform(parse_pattern(pattern), 0.5))
    for level, rules in ((0.3, pattern), (0.8, "dense")):
        ours = dispatch.attend(q, k, v, layout, gated, noise=torch.tensor(level, device="cuda"))
        expected = dispatch.attend(q, k, v, layout, rules) if rules != "dense" else None
        if expected is None:
            expected, _ = attention(q, k, v, f"n:{q.shape[2]}", "dense")
        torch.testing.assert_close(ours, expected, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_heads_and_ranges_of_noise_follow_their_own_rules(level):
    q, k, v = tensors(TokenLayout.parse(FLUX).tokens, head_dim=128)
    near, lines, dense = parse_pattern(GRAT_B), parse_pattern(GRAT_X), Dense()
    rules = Rules.of(
        [[near, lines, near, dense], [lines, lines, near, near], [dense, near, near, lines]], [0.3, 0.7, 1]
    )
    noise = torch.tensor(level, device="cuda")
    ours = dispatch.attend(q, k, v, FLUX, str(rules), noise=noise)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = dispatch.attend(q, k, v, FLUX, str(rules), noise=noise)
    graph.replay()
    assert torch.equal(replayed, ours)
    for rule in rules.at(level):
        heads = list(rule.heads or range(4))
        expected, _ = masked_dense(q[:, heads], k[:, heads], v[:, heads], FLUX, str(rule.pattern))
        assert (ours[:, heads].double() - expected).norm() / expected.norm() < 4e-3


@pytest.mark.parametrize(
    ("layout", "pattern"), [(FLUX, GRAT_X), ("text:5 | h:30 w:47", "neighborhood{radius=1,group=8x8}")]
)
def test_patterns_follow_the_noise_and_graphs_need_not_know_it(layout, pattern):
    q, k, v = tensors(TokenLayout.parse(layout).tokens, head_dim=128)
    sparse, _ = attention(q, k, v, layout, pattern)
    dense, _ = attention(q, k, v, f"n:{q.shape[2]}", "dense")
    noise = torch.zeros((), device="cuda")

    def gated():
        return dispatch.attend(q, k, v, layout, str(Rules.uniform(parse_pattern(pattern), 0.5)), noise=noise)

    gated()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = gated()
    for level, expected in (
        (0.0, sparse),
        (0.9, dense),
        (0.5, sparse),
        (0.51, dense),
        (math.nan, dense),
        (0.1, sparse),
    ):
        noise.fill_(level)
        replayed.fill_(math.nan)
        graph.replay()
        # Rows of global queries are summed in other parts than by a kernel of one pattern.
        torch.testing.assert_close(replayed, expected, rtol=0.02, atol=2e-3)
        assert torch.equal(gated(), replayed)


@pytest.mark.parametrize(
    ("layout", "group"),
    [(FLUX, (16, 16)), ("t:9 h:21 w:40 | text:77", (4, 8, 8)), ("h:60 w:44", (8, 16)), ("text:5 | h:30 w:47", (7, 5))],
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_lists_made_at_run_time_say_which_groups_are_read(layout, group, head_dim):
    q, k, v = tensors(TokenLayout.parse(layout).tokens, batch=2, heads=6, kv_heads=3, head_dim=head_dim)
    with listed.registered():
        pattern = str(listed.Listed(group, 5))
        spec = kernel_for(q, k, v, layout, pattern, returns_lse=True).emitted.spec
        for _ in range(2):  # other lists are other work for the same kernel
            lists = listed.random_lists(spec, "cuda")
            out, lse = attention(q, k, v, layout, pattern, returns_lse=True, key_lists=lists)
            expected, expected_lse = listed.masked_dense(spec, q, k, v, lists)
            assert (out.double() - expected).norm() / expected.norm() < 4e-3
            torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-4, atol=1e-4)
        with pytest.raises(BadAttentionInput, match="reads lists of keys, of which there are none"):
            attention(q, k, v, layout, pattern, returns_lse=True)
        with pytest.raises(BadAttentionInput, match="the lists of keys have"):
            attention(q, k, v, layout, pattern, returns_lse=True, key_lists=lists[:1])
