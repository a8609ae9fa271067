"""Emitted Triton kernels in Triton's interpreter, on the CPU, against masked dense attention.

The interpreter must be switched on before Triton is imported: `make test` runs this folder with TRITON_INTERPRET=1.
"""

import math
import os
from dataclasses import replace

import kernel_specs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import masked_dense
from strategies import problems

from codegen.config import KernelConfig
from codegen.emit import emit
from codegen.spec import Problem

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
]


def run(spec, folder, mask, **gate):
    """Launch a spec's kernel twice in the interpreter and compare; a closed one must write nothing."""
    from runtime.compiling import load_module

    emitted = emit(spec)
    path = folder / f"{spec.name}.py"
    path.write_text(emitted.source)
    kernel = load_module(path, spec.name).attention
    dtype = getattr(torch, spec.dtype)
    q = torch.randn(spec.batch, spec.heads, spec.queries, spec.head_dim).to(dtype)
    k, v = (torch.randn(spec.batch, spec.keys, spec.kv_heads, spec.head_dim).to(dtype).transpose(1, 2) for _ in "kv")
    tensors = {"q": q, "k": k, "v": v, "o": torch.full_like(q, math.nan)}
    given = {
        f"{n}_{axis}": t.stride(at) for n, t in tensors.items() for at, axis in enumerate(("batch", "head", "token"))
    }
    given |= tensors | {
        "lse": torch.full(q.shape[:3], math.nan),
        "key_mask": mask,
        "parts": torch.full((max(1, emitted.part_rows * spec.head_block),), math.nan),
        "part_lse": torch.full((max(1, emitted.part_rows),), math.nan),
        "arrivals": torch.zeros(max(1, emitted.arrivals), dtype=torch.int32),
        "scale_log2": spec.head_dim**-0.5 / math.log(2),
        **gate,
    }
    for _ in range(2):
        kernel[(emitted.grid,)](*[given[argument.name] for argument in emitted.arguments])
    assert not given["arrivals"].any()
    if gate and (gate["noise"].item() <= gate["threshold"]) == gate["above"]:
        assert all(given[name].isnan().all() for name in ("o", "lse", "parts"))
        return
    out, lse = masked_dense(q, k, v, spec.layout, spec.pattern, mask=mask if spec.key_mask else None)
    tolerance = {"rtol": 1e-3, "atol": 4e-3} if spec.dtype == "float16" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(tensors["o"].double(), out, **tolerance)
    if spec.returns_lse:
        torch.testing.assert_close(given["lse"].double(), lse, rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
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
    asked = Problem(
        str(layout), str(pattern), batch, heads, kv_heads, layout.tokens, head_dim, dtype, 80, 8, key_mask, returns_lse
    )
    spec = asked.with_config(KernelConfig("triton", *blocks, 4, 2))
    mask = torch.rand(batch, layout.tokens) < 0.6
    run(spec, tmp_path_factory.mktemp("kernels"), mask)


@pytest.mark.parametrize("keys", [7, 70])
def test_dense_and_cross_lengths(tmp_path, keys):
    asked = Problem("n:45", "dense", 2, 2, 2, keys, 16, "float32", 80, 8, returns_lse=True)
    run(asked.with_config(KernelConfig("triton", 16, 32, 4, 2)), tmp_path, torch.ones(2, keys, dtype=torch.bool))


def test_a_row_of_global_queries_in_many_parts(tmp_path):
    layout, pattern = "text:20 | h:18 w:20 | more:3", "neighborhood{radius=0,edge=clip,group=3x4}"
    asked = Problem(layout, pattern, 1, 2, 1, 383, 16, "float32", 80, 8, returns_lse=True)
    spec = asked.with_config(KernelConfig("triton", 16, 16, 4, 2))
    assert "PARTS = tl.constexpr(6)" in emit(spec).source
    run(spec, tmp_path, torch.ones(1, 383, dtype=torch.bool))


@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 0.8, 0.80001, 1.0, math.nan])
def test_a_gated_kernel_works_on_one_side_of_its_threshold(tmp_path, noise, above):
    asked = kernel_specs.problem(
        "text:5 | h:9 w:12", "crisscross{axes=lines,group=3x4}", heads=2, head_dim=16, dtype="float32"
    )
    asked = replace(asked, arch=80, returns_lse=True, gated=True)
    spec = asked.with_config(KernelConfig("triton", 16, 16, 4, 2))
    gate = {"noise": torch.tensor(noise), "threshold": float(torch.tensor(0.8)), "above": above}
    run(spec, tmp_path, torch.ones(1, 113, dtype=torch.bool), **gate)
