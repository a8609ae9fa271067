"""Emitted Triton kernels in Triton's interpreter, on the CPU, against masked dense attention.

The interpreter must be switched on before Triton is imported: `make test` runs this folder with TRITON_INTERPRET=1.
"""

import math
import os
from dataclasses import replace

import kernel_specs
import listed
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_specs import routing_args
from oracle import of_heads
from strategies import layouts, patterns, problems

from planner.codegen.emit.bodies import emit
from planner.codegen.emit.group_means import MEANS
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.launch_plan import HeadRouting

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
]


TOLERANCES = {"float32": (1e-4, 1e-5), "float16": (1e-3, 4e-3), "bfloat16": (8e-3, 3e-2)}
"""(relative, absolute) distance of an output from the exact one where something on the way is rounded to a type."""


def launch(spec, folder, given):
    """Run a spec's kernel in the interpreter with what it takes of the given arguments."""
    from planner.runtime.kernels.compile import load_module

    emitted = emit(spec)
    path = folder / f"{spec.name}.py"
    path.write_text(emitted.source)
    kernel = getattr(load_module(path, spec.name), emitted.entry)
    for name, tensor in [(name, given[name]) for name in "qkvo" if name in given]:
        given |= {f"{name}_{axis}": tensor.stride(at) for at, axis in enumerate(("batch", "head", "token"))}
    kernel[(emitted.grid,)](*[given[argument.name] for argument in emitted.arguments])


def run(spec, folder, mask, routing=None, noise=0.5):
    """Launch a spec's kernel twice in the interpreter and compare; what it does not serve must stay as it was."""
    emitted, dtypes = emit(spec), spec.dtypes
    q = torch.randn(spec.batch, spec.heads, spec.queries, spec.head_dim).to(dtypes.q.of_tensors)
    k, v = (
        torch.randn(spec.batch, spec.keys, spec.kv_heads, spec.head_dim)
        .to(dtypes.of(letter).of_tensors)
        .transpose(1, 2)
        for letter in "kv"
    )
    scales = {letter: torch.rand(()) + 0.5 for letter in spec.scales}
    out = torch.full_like(q, math.nan, dtype=dtypes.out.of_tensors)
    given = {"q": q, "k": k, "v": v, "o": out, "key_mask": mask} | {
        "lse": torch.full(q.shape[:3], math.nan),
        "partials": torch.full((max(1, emitted.partial_rows * spec.head_block),), math.nan),
        "partial_lse": torch.full((max(1, emitted.partial_rows),), math.nan),
        "arrivals": torch.zeros(max(1, emitted.arrivals), dtype=torch.int32),
        "scale_log2": spec.head_dim**-0.5 / math.log(2),
    }
    given |= {f"{letter}_scale": scale for letter, scale in scales.items()}
    rows = sum(spec.mean_rows.values())
    given["mean_bias"] = torch.full((spec.batch, rows), math.nan)
    for kind, problem in spec.problem.means_read.items():
        shape = (spec.batch, spec.kv_heads, spec.mean_rows[kind], spec.head_dim)
        means = make_spec(problem, MEANS)
        empty = {letter: torch.full(shape, math.nan, dtype=dtypes.of(letter).of_tensors) for letter in "kv"}
        here = given | {f"{letter}_means": empty[letter] for letter in "kv"}
        here |= {"mean_bias": given["mean_bias"][:, spec.first_mean(kind) :], "bias_batch": rows}
        here |= {} if routing is None else routing_args(routing.means(spec, kind).table(means), noise)
        launch(means, folder, here)
        given |= {f"{letter}_means_{kind}": here[f"{letter}_means"] for letter in "kv"}
    given |= {} if routing is None else routing_args(routing.table(spec), noise)
    for _ in range(2):
        launch(spec, folder, given)
    assert not given["arrivals"].any()
    routed = None if routing is None else dict(routing.routed[sum(noise > level for level in routing.levels)])
    exact = [x.double() * scales.get(letter, 1.0) for letter, x in (("q", q), ("k", k), ("v", v))]
    out, lse = of_heads(spec, *exact, mask if spec.key_mask else None, routed)
    rounded = [dtypes.q, dtypes.out, *[dtypes.k, dtypes.v] * bool(spec.mean_rows)]
    rtol, atol = max(TOLERANCES[dtype.torch_name] for dtype in rounded)
    torch.testing.assert_close(given["o"].double(), out, equal_nan=True, rtol=rtol, atol=atol)
    if spec.returns_lse:
        torch.testing.assert_close(given["lse"].double(), lse, rtol=1e-4, atol=1e-4, equal_nan=True)


@settings(max_examples=30)
@given(
    problems(),
    st.sampled_from([16, 24, 32]),
    st.sampled_from(["float32", "float16"]),
    st.sampled_from([(16, 16), (32, 16), (16, 32), (64, 32)]),
    st.sampled_from([(1, 1, 1), (2, 2, 1), (1, 4, 2)]),
    st.booleans(),
    st.booleans(),
)
def test_drawn_kernels(tmp_path_factory, problem, head_dim, dtype, blocks, shape, key_mask, returns_lse):
    layout, _, pattern = problem
    batch, heads, kv_heads = shape
    assume(batch * heads * layout.tokens**2 < 200 * math.prod(blocks))  # tiles, which the interpreter does one by one
    asked = kernel_specs.problem(
        str(layout), str(pattern), batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype,
        arch=80, num_sms=8, key_mask=key_mask, returns_lse=returns_lse,
    )  # fmt: skip
    spec = make_spec(asked, KernelConfig("triton", *blocks, 4, 2))
    mask = torch.rand(batch, layout.tokens) < 0.6
    run(spec, tmp_path_factory.mktemp("kernels"), mask)


@pytest.mark.parametrize("keys", [7, 70])
def test_dense_and_cross_lengths(tmp_path, keys):
    asked = kernel_specs.problem(
        "n:45", "dense", batch=2, heads=2, keys=keys, head_dim=16, dtype="float32", arch=80, returns_lse=True
    )
    run(make_spec(asked, KernelConfig("triton", 16, 32, 4, 2)), tmp_path, torch.ones(2, keys, dtype=torch.bool))


def test_a_row_of_global_queries_in_many_splits(tmp_path):
    layout, pattern = "text:20 | h:18 w:20 | more:3", "neighborhood{radius=0,edge=clip,group=3x4}"
    asked = kernel_specs.problem(
        layout, pattern, heads=2, kv_heads=1, head_dim=16, dtype="float32", arch=80, num_sms=8, returns_lse=True
    )
    spec = make_spec(asked, KernelConfig("triton", 16, 16, 4, 2))
    assert "SPLITS = tl.constexpr(6)" in emit(spec).source
    run(spec, tmp_path, torch.ones(1, 383, dtype=torch.bool))


MIXED = [  # the interpreter multiplies no bfloat16
    ("float16{out=float32}", ""),
    ("float16{out=float32}", "kv"),
    ("float32{k=float16,v=bfloat16,out=bfloat16}", "k"),
    ("float32{k=bfloat16}", "v"),
    ("float16{out=bfloat16}", "qkv"),
]


@pytest.mark.parametrize(("dtype", "scales"), MIXED)
def test_tensors_of_types_of_their_own_with_scales(tmp_path, dtype, scales):
    """Global queries read their keys in several splits, whose partials are float32 whatever the tensors are."""
    asked = kernel_specs.problem(
        "text:5 | h:9 w:12", "neighborhood{radius=0,edge=clip,group=3x4}", heads=2, kv_heads=1, head_dim=16,
        dtype=dtype, scales=scales, key_mask=True, returns_lse=True, arch=80,
    )  # fmt: skip
    spec = make_spec(asked, KernelConfig("triton", 16, 16, 4, 2))
    assert "SPLITS = tl.constexpr(4)" in emit(spec).source
    run(spec, tmp_path, torch.rand(1, 113) < 0.6)


def test_means_of_keys_and_values_of_different_types(tmp_path):
    asked = kernel_specs.problem(
        "text:5 | h:9 w:12", "neighborhood{radius=0,edge=clip,group=3x4,pooled=mean}", heads=2, head_dim=16,
        dtype="float32{k=bfloat16,v=float16}", arch=80,
    )  # fmt: skip
    (means,) = asked.means_read.values()
    assert means.dtype == "bfloat16{v=float16}"
    run(make_spec(asked, KernelConfig("triton", 16, 16, 4, 2)), tmp_path, torch.ones(1, 113, dtype=torch.bool))


GROUPS = {(3, 4): (16, 16), (4, 4): (16, 16), (8, 2): (16, 32), (7, 5): (32, 16)}


@settings(max_examples=18)
@given(st.data())
def test_heads_follow_the_patterns_that_the_table_names(tmp_path_factory, data):
    group = data.draw(st.sampled_from(list(GROUPS)))
    layout = data.draw(layouts((13, 11)))
    drawn = data.draw(st.lists(patterns(group), min_size=1, max_size=3, unique_by=str))
    spelled = [str(pattern)[:-1] + ",pooled=mean}" if data.draw(st.booleans()) else str(pattern) for pattern in drawn]
    spelled += ["dense"] * data.draw(st.booleans())
    batch, heads, kv_heads = data.draw(st.sampled_from([(1, 3, 3), (2, 2, 1)]))
    asked = kernel_specs.problem(
        str(layout), "; ".join(spelled), batch=batch, heads=heads, kv_heads=kv_heads, head_dim=16, dtype="float32",
        arch=80, num_sms=8, key_mask=data.draw(st.booleans()), returns_lse=True, has_head_table=True,
    )  # fmt: skip
    spec = make_spec(asked, KernelConfig("triton", *GROUPS[group], 4, 2))
    levels = data.draw(st.sampled_from([(), (0.4,), (0.25, 0.75)]))
    routed = [
        {slot: data.draw(st.integers(0, len(spelled) - 1)) for slot in range(spec.slots) if data.draw(st.booleans())}
        for _ in range(len(levels) + 1)
    ]
    routing = HeadRouting(levels, tuple(tuple(each.items()) for each in routed))
    mask = torch.rand(batch, layout.tokens) < 0.6
    run(spec, tmp_path_factory.mktemp("kernels"), mask, routing, data.draw(st.sampled_from([0.1, 0.4, 0.41, 0.9])))


@pytest.mark.parametrize("noise", [0.0, 0.8, 0.80001, 1.0, math.nan])
def test_a_level_belongs_to_the_range_that_ends_with_it_and_no_number_is_high(tmp_path, noise):
    asked = kernel_specs.problem(
        "text:5 | h:9 w:12",
        "crisscross{axes=lines,group=3x4}; dense",
        heads=2,
        head_dim=16,
        dtype="float32",
        has_head_table=True,
    )
    spec = make_spec(replace(asked, arch=80, returns_lse=True), KernelConfig("triton", 16, 16, 4, 2))
    level = float(torch.tensor(0.8))
    routing = HeadRouting((level,), (((0, 0), (1, 0)), ((0, 1), (1, 1))))
    run(spec, tmp_path, torch.ones(1, 113, dtype=torch.bool), routing, noise if noise == noise else 1.0)
    given = routing_args(routing.table(spec), noise)
    assert (given["noise"] <= given["levels"][0]).item() == (noise <= 0.8)


@settings(max_examples=12)
@given(
    st.sampled_from([("h:9 w:12", (3, 4)), ("text:5 | h:13 w:11", (7, 5)), ("t:3 h:9 w:10 | text:9", (2, 4, 4))]),
    st.integers(1, 9),
    st.sampled_from([(16, 16), (32, 16), (16, 32)]),
    st.sampled_from([(1, 1, 1), (2, 2, 1)]),
)
def test_lists_made_at_run_time_say_which_groups_are_read(tmp_path_factory, where, longest, blocks, shape):
    (layout, group), (batch, heads, kv_heads) = where, shape
    with listed.registered():
        asked = kernel_specs.problem(
            layout, str(listed.Listed(group, longest)), batch=batch, heads=heads, kv_heads=kv_heads, head_dim=16,
            dtype="float32", arch=80, returns_lse=True,
        )  # fmt: skip
        config = KernelConfig("triton", *blocks, 4, 2)
        assert why_not(config, asked) is None
        spec, emitted = make_spec(asked, config), emit(make_spec(asked, config))
        q = torch.randn(batch, heads, spec.queries, 16)
        k, v = torch.randn(2, batch, kv_heads, spec.queries, 16)
        out, lse = torch.full_like(q, math.nan), torch.full(q.shape[:3], math.nan)
        lists = listed.random_lists(spec)
        tensors = {"q": q, "k": k, "v": v, "o": out, "lse": lse, "key_lists": lists, "scale_log2": 0.25 / math.log(2)}
        tensors["partials"] = torch.full((max(1, emitted.partial_rows * spec.head_block),), math.nan)
        tensors["partial_lse"] = torch.full((max(1, emitted.partial_rows),), math.nan)
        tensors["arrivals"] = torch.zeros(max(1, emitted.arrivals), dtype=torch.int32)
        launch(spec, tmp_path_factory.mktemp("kernels"), tensors)
        exact, exact_lse = listed.masked_dense(spec, q, k, v, lists)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-4, atol=1e-4)
