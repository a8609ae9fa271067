"""What the plug-in's kernel body does once it is installed, in Triton's interpreter: run by test_plugin.py."""

import math
from dataclasses import replace

import pytest
import torch

from planner.codegen.emit.bodies import emit
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.candidates import choose_config
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.problem import make_problem
from planner.plan.target import Target
from planner.runtime.kernels.compile import load_module
from planner.runtime.masked_dense import masked_dense


def problem(layout="h:12 w:20", pattern="slab{axis=0,group=4x4}", **asked):
    usual = {"heads": 4, "kv_heads": 2, "head_dim": 24, "dtype": "float16", "batch": 2}
    return make_problem(layout, pattern, Target.named("h100"), **(usual | asked))


@pytest.mark.parametrize("layout", ["h:12 w:20", "h:10 w:9"])
def test_the_kernel_that_is_chosen_computes_what_the_mask_says(layout, tmp_path):
    asked = problem(layout)
    emitted = emit(make_spec(asked, choose_config(asked)))
    assert emitted.spec.config.body == "slabs"
    path = tmp_path / f"{emitted.spec.name}.py"
    path.write_text(emitted.source)
    kernel = getattr(load_module(path, emitted.spec.name), emitted.entry)
    q, k, v = (torch.randn(2, heads, asked.queries, 24, dtype=torch.float16) for heads in (4, 2, 2))
    given = {"q": q, "k": k, "v": v, "o": torch.full_like(q, math.nan), "scale_log2": 24**-0.5 / math.log(2)}
    for name in "qkvo":
        given |= {f"{name}_{axis}": given[name].stride(at) for at, axis in enumerate(("batch", "head", "token"))}
    kernel[(emitted.grid,)](*[given[argument.name] for argument in emitted.arguments])
    q, k, v = q.float(), k.float().repeat_interleave(2, 1), v.float().repeat_interleave(2, 1)
    judged = masked_dense(q, k, v, layout, asked.pattern)
    torch.testing.assert_close(given["o"].float(), judged, rtol=1e-3, atol=4e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pattern": "slab{axis=1,group=4x4}"}, "it computes slabs along the slowest axis"),
        ({"pattern": "crisscross{axes=lines,group=4x4}"}, "it computes slabs along the slowest axis"),
        ({"layout": "text:8 | h:12 w:20"}, "it has no global tokens"),
        ({"dtype": "float32"}, "it multiplies bfloat16 and float16"),
        ({"returns_lse": True}, "it has no means, offsets, masks, log-sum-exps or scales"),
    ],
)
def test_what_it_cannot_is_left_to_other_bodies(change, reason):
    assert why_not(KernelConfig("slabs", 32, 32, 4, 2), problem(**change)) == reason
    assert choose_config(problem(**change)).body != "slabs"


def test_what_needs_more_shared_memory_than_there_is_is_not_chosen():
    wide = replace(problem(), head_dim=256, arch=89)
    assert "bytes of shared memory" in why_not(KernelConfig("slabs", 256, 64, 4, 4), wide)
