"""Emission of the means of groups, for every target: a plain Triton kernel, one program for each head and group.

The bias of a mean is what its score is greater by: n keys of one score weigh as much as one whose score is greater by
the logarithm of n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import sympy

from planner.codegen.emit.kernel_source import box_tokens, header, indented, render
from planner.codegen.spec.body import BODIES, KernelBody
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import TABLE, Argument, Emitted, pointer_argument, stride_argument
from planner.codegen.spec.head_table import HEADER
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import Problem
from planner.codegen.tiling.group_means import MeanTiles
from planner.codegen.tiling.sympy_source import source_of

_GROUP = sympy.Symbol("group", integer=True, nonnegative=True)

MEANS = KernelConfig("means", 16, 64, 2, 1)
"""The fastest of ten tried on an H100: 3.0 TB/s at FLUX 4096² (E10 in bench/EXPERIMENTS.md)."""


class MeansBody(KernelBody):
    """The means of groups, ``block_n`` tokens at a time."""

    name, order, computes_means = "means", 40, True

    def why_not(self, config: KernelConfig, problem: Problem) -> str | None:
        return None

    def candidates(self, problem: Problem) -> Iterable[KernelConfig]:
        return (MEANS,)

    def emit(self, spec: KernelSpec) -> Emitted:
        return emit_means(spec)


def emit_means(spec: KernelSpec) -> Emitted:
    """Emit the kernel that computes the means of a pattern's groups."""
    means = spec.program.means
    assert means is not None
    strides = [f"{letter}_{axis}" for letter in "kv" for axis in ("batch", "head", "token")]
    source = render(
        "means.py.jinja",
        title=f"Means of the groups of {spec.pattern} over {spec.layout}, for SM{spec.arch}.",
        header=header(spec)[:2],
        spec=spec,
        rows=means.rows,
        tokens=math.prod(means.pattern.group),
        block=spec.config.block_n,
        table_header=HEADER,
        strides=[*strides, "bias_batch"],
        group_lines=indented(f"c{axis} = {source_of(digit)}" for axis, digit in enumerate(means.digits(_GROUP))),
        token_lines=indented(indented(_token_lines(spec, means))),
    )
    arguments = [pointer_argument(name, spec.dtypes) for name in ("k", "v", "k_means", "v_means")]
    arguments += [Argument("mean_bias", "*fp32")] + [Argument("key_mask", "*i1")] * spec.key_mask
    arguments += TABLE * spec.has_head_table
    arguments += [stride_argument(stride, spec.dtypes) for stride in strides]
    arguments += [Argument("bias_batch", "i64"), Argument("scale_log2", "fp32")]
    return Emitted(
        spec=spec,
        source=source,
        arguments=tuple(arguments),
        grid=spec.batch * spec.kv_heads * means.rows,
        partial_rows=0,
        arrivals=0,
        retry_flags=0,
        waits=False,
        warps=spec.config.warps,
        maxnreg=None,
    )


def _token_lines(spec: KernelSpec, means: MeanTiles) -> Iterator[str]:
    """Yield lines for the sequence indices of a block of the group's tokens, and for which of them count."""
    pattern, view = means.pattern, spec.program.queries.view
    along = list(zip(pattern.group, pattern.front_pad, view.axes, strict=True))
    starts = [f"c{axis} * {g}{f' - {front_pad}' * (front_pad > 0)}" for axis, (g, front_pad, _) in enumerate(along)]
    yield from box_tokens(starts, pattern.group, view.origin, view.axes, "at", "tokens")
    inside = ["(at < TOKENS)"]
    for axis, (_, front_pad, (size, _)) in enumerate(along):
        inside += [f"(x{axis} >= 0)"] * (front_pad > 0) + [f"(x{axis} < {size})"]
    yield f"inside = {' & '.join(inside)}"
    if spec.key_mask:
        yield "inside = inside & (tl.load(key_mask + tokens, mask=inside, other=0) != 0)"


BODIES.register(MeansBody.name)(MeansBody())
