"""The kernels that between them use everything that emission can do; their sources are kept in codegen/goldens/."""

from types import SimpleNamespace

import torch

from planner.codegen.spec.body import make_spec
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.problem import make_problem

HOPPER = "sm90{m=128,n=128,warps=4,stages=4}"
FOUR = "sm90{m=256,n=64,warps=4,stages=16}"
PAIRS = "pairs{m=128,n=128,warps=4,stages=5}"
WIDE, NARROW = "triton{m=128,n=64,warps=8,stages=2}", "triton{m=64,n=64,warps=4,stages=2}"

MEANS = "means{m=16,n=64,warps=2,stages=1}"


def problem(layout, pattern, *, arch=90, num_sms=132, **asked):
    """Make a problem; usual values may be left out."""
    usual = {"heads": 24, "head_dim": 128, "dtype": "bfloat16"}
    return make_problem(layout, pattern, SimpleNamespace(arch=arch, num_sms=num_sms), **(usual | asked))


def _spec(config, *args, **kwargs):
    return make_spec(problem(*args, **kwargs), KernelConfig.parse(config))


FLUX = "text:512 | h:64 w:64"
SPECS = {
    "hopper_flux_grat_x": _spec(HOPPER, FLUX, "crisscross{axes=lines,group=16x16}"),
    "hopper_flux_grat_b": _spec(HOPPER, FLUX, "neighborhood{radius=1,edge=clamp,group=16x16}", returns_lse=True),
    "hopper_hunyuan_ragged": _spec(
        HOPPER, "t:33 h:45 w:80 | text:250", "neighborhood{radius=1,edge=clip,group=4x8x8}", key_mask=True, batch=2
    ),
    "hopper_wan_lines": _spec(HOPPER, "t:21 h:45 w:80", "crisscross{axes=lines,group=4x8x8}", heads=40),
    "hopper_planes_gqa_64": _spec(
        HOPPER.replace("stages=4", "stages=8"),
        "before:77 | t:8 h:32 w:48 | after:300",
        "crisscross{axes=planes,group=2x8x8}",
        kv_heads=6,
        head_dim=64,
        dtype="float16",
    ),
    "hopper_64": _spec(FOUR, "t:9 h:45 w:80 | text:250", "neighborhood{radius=1,edge=clamp,group=4x8x8}", head_dim=64),
    "hopper_dense": _spec(HOPPER, "n:4608", "dense", head_dim=80),
    "hopper_pairs": _spec(PAIRS, FLUX, "neighborhood{radius=1,edge=clamp,group=8x8}"),
    "hopper_pairs_rules": _spec(
        PAIRS,
        "t:6 h:45 w:80 | text:250",
        "crisscross{axes=planes,group=1x8x8}; neighborhood{radius=1,edge=clamp,group=1x8x8,pooled=mean}; dense",
        has_head_table=True,
        key_mask=True,
        batch=2,
        returns_lse=True,
    ),
    "hopper_patches": _spec(HOPPER, "t:30 h:48 w:80 | text:256", "crisscross{axes=lines,group=4x8x8}", heads=2),
    "triton_flux_grat_x": _spec(WIDE, FLUX, "crisscross{axes=lines,group=16x16}", arch=80),
    "triton_flux_grat_b_8x8": _spec(NARROW, FLUX, "neighborhood{radius=1,edge=clamp,group=8x8}"),
    "triton_any_group": _spec(
        NARROW, "text:5 | h:30 w:47", "neighborhood{radius=2x1,edge=clip,group=7x5}", arch=89, returns_lse=True
    ),
    "triton_planes_masked_96": _spec(
        WIDE.replace("n=64", "n=32"),
        "t:9 h:20 w:33 | text:256",
        "crisscross{axes=planes,group=4x8x8}",
        head_dim=96,
        arch=100,
        key_mask=True,
        kv_heads=8,
    ),
    "triton_row_of_tokens_float32": _spec(
        "triton{m=32,n=32,warps=4,stages=2}",
        "n:1000",
        "neighborhood{radius=1,edge=clamp,group=64}",
        dtype="float32",
        head_dim=64,
        arch=120,
    ),
    "hopper_offset": _spec(HOPPER, FLUX, "crisscross{axes=lines,group=16x16,offset=8x8}", returns_lse=True),
    "hopper_gated": _spec(HOPPER, FLUX, "neighborhood{radius=1,edge=clip,group=16x16}; dense", has_head_table=True),
    "triton_gated": _spec(
        NARROW, "text:9 | h:20 w:30", "crisscross{axes=lines,group=8x8}; dense", arch=80, has_head_table=True
    ),
    "hopper_means": _spec(HOPPER, FLUX, "crisscross{axes=lines,group=16x16,pooled=mean}"),
    "hopper_rules": _spec(
        HOPPER,
        "t:8 h:45 w:80 | text:250",
        "neighborhood{radius=1,edge=clamp,group=4x8x8,pooled=mean}; crisscross{axes=planes,group=2x8x8}; dense; "
        "crisscross{axes=lines,group=4x16x16,pooled=mean}",
        has_head_table=True,
        key_mask=True,
        batch=2,
        kv_heads=12,
        returns_lse=True,
    ),
    "triton_means": _spec(
        NARROW, "text:5 | h:30 w:47", "neighborhood{radius=2x1,edge=clip,group=7x5,pooled=mean}", arch=89, head_dim=72
    ),
    "triton_rules": _spec(
        WIDE,
        FLUX,
        "neighborhood{radius=1,edge=clip,group=16x16,pooled=mean}; crisscross{axes=lines,group=8x16}; dense",
        has_head_table=True,
        arch=100,
    ),
    "means_flux": _spec(MEANS, FLUX, "neighborhood{radius=0,edge=clip,group=16x16,pooled=mean}", only_means=True),
    "means_ragged": _spec(
        MEANS,
        "t:9 h:45 w:80 | text:250",
        "neighborhood{radius=0,edge=clip,group=4x8x8,offset=2x4x4,pooled=mean}",
        only_means=True,
        has_head_table=True,
        key_mask=True,
        batch=2,
        head_dim=72,
        arch=80,
    ),
    "triton_scaled": _spec(
        NARROW,
        "text:9 | h:20 w:30",
        "crisscross{axes=lines,group=8x8}",
        arch=80,
        dtype="bfloat16{out=float32}",
        scales="kv",
    ),
    "triton_cross": _spec(WIDE, "n:4096", "dense", keys=512, arch=100),
}


def routing_args(table, noise):
    """Make the arguments of a has_head_table kernel at a noise level."""
    return {
        "table": torch.tensor(table.rows, dtype=torch.int32),
        "levels": torch.tensor([*table.levels, 1.0]),
        "ranges": len(table.rows),
        "noise": torch.tensor(noise),
    }


SMALL = make_spec(problem("n:64", "dense", head_dim=16, arch=80), KernelConfig("triton", 16, 16, 4, 1))
