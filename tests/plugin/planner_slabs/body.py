"""A kernel body for slabs along the slowest axis, whose tokens follow one another: a CTA reads one run of keys."""

import math
from collections.abc import Iterator

from planner.codegen.spec.body import BODIES, KernelBody
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import Argument, Emitted, pointer_argument, stride_argument
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import Problem
from planner_slabs.slab import Slab

SOURCE = '''"""{title}"""

import triton
import triton.language as tl

TOKENS = tl.constexpr({tokens})
SLAB = tl.constexpr({slab})  # tokens of a whole slab
SLABS = tl.constexpr({slabs})
TILES = tl.constexpr({tiles})  # query tiles of a whole slab
HEADS = tl.constexpr({heads})
HEADS_A_KEY = tl.constexpr({heads_a_key})  # heads of queries that share one of keys
HEAD_DIM = tl.constexpr({head_dim})
CHANNELS = tl.constexpr({channels})  # the head dimension, padded with zeros
BLOCK_M = tl.constexpr({block_m})
BLOCK_N = tl.constexpr({block_n})


@triton.jit
def rows_of(tensor, rows, of_token, stop):
    """Where the rows of some tokens lie, and which of their elements are there."""
    channel = tl.arange(0, CHANNELS)
    place = tensor + rows.to(tl.int64)[:, None] * of_token + channel[None, :]
    return place, (rows < stop)[:, None] & (channel < HEAD_DIM)[None, :]


@triton.jit
def attention({parameters}):
    """The kernel: a CTA for each head and query tile, which reads the keys of its slab."""
    slot = tl.program_id(0) // (SLABS * TILES)
    slab = tl.program_id(0) // TILES % SLABS
    batch = (slot // HEADS).to(tl.int64)
    head = (slot % HEADS).to(tl.int64)
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head // HEADS_A_KEY * k_head
    v += batch * v_batch + head // HEADS_A_KEY * v_head
    o += batch * o_batch + head * o_head

    first = slab * SLAB
    stop = tl.minimum(first + SLAB, TOKENS)
    queries = first + tl.program_id(0) % TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    q_place, is_query = rows_of(q, queries, q_token, stop)
    query = tl.load(q_place, mask=is_query, other=0.0)
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, CHANNELS], tl.float32)
    for begin in range(first, stop, BLOCK_N):
        keys = begin + tl.arange(0, BLOCK_N)
        k_place, is_key = rows_of(k, keys, k_token, stop)
        scores = tl.dot(query, tl.trans(tl.load(k_place, mask=is_key, other=0.0))) * scale_log2
        scores = tl.where((keys < stop)[None, :], scores, float("-inf"))
        more = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp2(scores - more[:, None])
        keep = tl.exp2(most - more)
        v_place, is_key = rows_of(v, keys, v_token, stop)
        value = tl.load(v_place, mask=is_key, other=0.0)
        total = total * keep[:, None] + tl.dot(shares.to(value.dtype), value)
        weight = weight * keep + tl.sum(shares, 1)
        most = more
    o_place, is_query = rows_of(o, queries, o_token, stop)
    tl.store(o_place, (total / weight[:, None]).to(o.dtype.element_ty), mask=is_query)
'''


class SlabBody(KernelBody):
    """A CTA for each query tile of a slab, one loop over the slab's keys."""

    name, order = "slabs", 5

    def why_not(self, config: KernelConfig, problem: Problem) -> str | None:
        """Say what else is asked for than slabs of 16-bit elements along the slowest axis."""
        pattern = problem.patterns[0]
        if problem.has_head_table or not isinstance(pattern, Slab) or pattern.axis != 0:
            return "it computes slabs along the slowest axis"
        if problem.token_layout.global_tokens:
            return "it has no global tokens"
        if problem.dtype not in ("bfloat16", "float16"):
            return "it multiplies bfloat16 and float16"
        if pattern.pooled or pattern.offset or problem.key_mask or problem.returns_lse or problem.scales:
            return "it has no means, offsets, masks, log-sum-exps or scales"
        return None

    def candidates(self, problem: Problem) -> Iterator[KernelConfig]:
        """Yield one for each size of query tiles, the largest first."""
        yield from (KernelConfig(self.name, rows, 32, 4, 2) for rows in (128, 64, 32))

    def shared_bytes(self, config: KernelConfig, problem: Problem) -> int:
        """Count queries, and the keys and values in flight."""
        return 2 * problem.head_block * (config.block_m + 2 * config.stages * config.block_n)

    def emit(self, spec: KernelSpec) -> Emitted:
        """Emit the kernel."""
        pattern, sizes = spec.patterns[0], spec.token_layout.grid.sizes
        slab = pattern.group[0] * math.prod(sizes[1:])
        slabs, tiles = pattern.grid(sizes).counts[0], -(-slab // spec.config.block_m)
        arguments = [pointer_argument(name, spec.dtypes) for name in "qkvo"]
        strides = [f"{name}_{axis}" for name in "qkvo" for axis in ("batch", "head", "token")]
        arguments += [stride_argument(stride, spec.dtypes) for stride in strides]
        arguments.append(Argument("scale_log2", "fp32"))
        source = SOURCE.format(
            title=f"{spec.pattern} over {spec.layout}, for SM{spec.arch}.",
            tokens=spec.queries,
            slab=slab,
            slabs=slabs,
            tiles=tiles,
            heads=spec.heads,
            heads_a_key=spec.heads // spec.kv_heads,
            head_dim=spec.head_dim,
            channels=spec.head_block,
            block_m=spec.config.block_m,
            block_n=spec.config.block_n,
            parameters=", ".join(argument.name for argument in arguments),
        )
        return Emitted(
            spec=spec,
            source=source,
            arguments=tuple(arguments),
            grid=spec.slots * slabs * tiles,
            partial_rows=0,
            arrivals=0,
            retry_flags=0,
            waits=False,
            warps=spec.config.warps,
            maxnreg=None,
        )


BODIES.register(SlabBody.name)(SlabBody())
