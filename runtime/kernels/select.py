"""Emitted kernels in use: from tensors to the kernel of exactly their problem, compiled once and kept."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from planner.codegen.spec.dtypes import DTYPES, dtype_of
from planner.codegen.spec.launch_plan import HeadRouting, Launch, launches
from planner.codegen.spec.problem import HEAD_DIMS, Problem
from planner.codegen.tiling.key_source import LISTS
from planner.errors import BadAttentionInput
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.runtime.cuda.launch import Kernel
from planner.runtime.cuda.parameters import RoutingArguments, Tensors
from planner.runtime.kernels.autotune import configured
from planner.runtime.kernels.bundle import Bundle
from planner.runtime.kernels.cache import Cache

BUNDLE = "PLANNER_BUNDLE"
"""Environment variable: a folder of kernels that `planner build` made; they are used before any is compiled."""

_kernels = dict[tuple[Any, ...], Kernel]()
_means = dict[tuple[Kernel, HeadRouting | None], list[tuple[str, Kernel, HeadRouting | None]]]()
_ready = dict[tuple[Any, ...], tuple[Kernel, tuple[bool, ...]]]()
_launches_of = dict[tuple[Any, ...], tuple[Launch, ...]]()
_lock = threading.Lock()
_load_seconds = 0.0


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    pattern: str,
    *,
    key_mask: torch.Tensor | None = None,
    scale: float | None = None,
    returns_lse: bool = False,
    routing_args: RoutingArguments | None = None,
    key_lists: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend under a pattern, or several, by an emitted kernel, on the CUDA device of the tensors.

    query: (B, H, N, D), key, value: (B, H', M, D) in the model's own order, H a multiple of H'. key_mask: (B, M)
    bool, False for keys to leave out. scale: of the scores, 1/√D by default. routing_args: which heads follow which of
    several patterns; the output of other heads is not written. key_lists: (B, H, query groups, 1 + longest) int32 for a
    pattern that reads lists of key groups (planner.codegen.tiling.key_source). out: memory for the output.

    Returns the output, (B, H, N, D) in the query's order in memory, and the log-sum-exp, (B, H, N) float32, or None.
    A query whose keys are all left out gives zeros and -inf. NaN and infinities in the input reach every output row
    whose tiles hold them, as in masked dense attention. Raises BadAttentionInput, NoKernel, UnsafeCache, DriverFailed.
    """
    place = (
        *(layout, pattern, query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride()),
        *(query.dtype, key.dtype, value.dtype, query.device, key.device, value.device),
        *(key_mask is not None, returns_lse, routing_args is not None, _is_tf32(query.dtype)),
    )
    ready = _ready.get(place)
    if ready is None:
        kernel = kernel_for(
            query,
            key,
            value,
            layout,
            pattern,
            key_mask is not None,
            returns_lse,
            has_head_table=routing_args is not None,
        )
        fails = tuple(kernel.why_not(x) is not None for x in (query, key, value))
        ready = _ready.setdefault(place, (kernel, fails if any(fails) else ()))
    kernel, fails = ready
    if fails or (query.data_ptr() | key.data_ptr() | value.data_ptr()) % 16:
        query, key, value = (
            _copy(x) if fail or x.data_ptr() % 16 else x
            for x, fail in zip((query, key, value), fails or (False,) * 3, strict=True)
        )
    factor = query.shape[3] ** -0.5 if scale is None else scale
    if not factor > 0:
        raise BadAttentionInput(f"scale is {scale}", "Pass a positive scale.")
    out = torch.empty_like(query) if out is None else out
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device) if returns_lse else None
    if key_mask is not None:
        expected = (torch.bool, (query.shape[0], key.shape[2]), query.device)
        found = (key_mask.dtype, tuple(key_mask.shape), key_mask.device)
        _require(found == expected, f"the key mask has {found}", f"Pass one of {expected}.")
        key_mask = key_mask.contiguous()
    spec, more = kernel.emitted.spec, Tensors()
    if spec.mean_rows:
        more |= _means_for(kernel, key, value, factor, key_mask, routing_args)
    if spec.has_key_lists:
        more[LISTS] = _checked_lists(key_lists, spec, query.device)
    kernel(query, key, value, out, factor, lse, key_mask, more, routing_args)
    return out, lse


def attention_under(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    rules: str,
    *,
    key_mask: torch.Tensor | None = None,
    scale: float | None = None,
    noise: torch.Tensor | None = None,
    kernel_patterns: str = "",
    out: torch.Tensor,
) -> torch.Tensor:
    """Attend under rules, by their spelling, and return ``out``; patterns that can share query tiles share a launch.

    query: (B, H, N, D), key, value: (B, H', M, D), out: (B, H, N, D). noise: () float32 on the device, where the rules
    depend on the noise level. kernel_patterns: as in planner.codegen.spec.launch_plan. Otherwise as ``attention``.
    """
    for launch in _launches(query, key, value, layout, rules, kernel_patterns, key_mask is not None):
        routing_args = None if launch.routing is None else RoutingArguments(launch.routing, noise)
        asked = launch.problem
        attention(
            query,
            key,
            value,
            asked.layout,
            asked.pattern,
            key_mask=key_mask,
            scale=scale,
            routing_args=routing_args,
            out=out,
        )
    return out


def _checked_lists(lists: torch.Tensor | None, spec: Problem, device: torch.device) -> torch.Tensor:
    """Check lists of keys, (B, H, query groups, 1 + longest) int32; raises BadAttentionInput."""
    _require(lists is not None, f"{spec.pattern} reads lists of keys, of which there are none", "Pass key_lists.")
    assert lists is not None
    expected = (torch.int32, spec.slots * spec.list_words, device, True)
    found = (lists.dtype, lists.numel(), lists.device, lists.is_contiguous())
    what = "(dtype, numbers, device, whether they are contiguous)"
    _require(found == expected, f"the lists of keys have {what} {found}", f"Pass some of {expected}.")
    return lists


def _means_for(
    kernel: Kernel,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    key_mask: torch.Tensor | None,
    routing_args: RoutingArguments | None,
) -> Tensors:
    """Compute the means that a kernel reads, by its names for them.

    key, value: (B, H', M, D). key_mask: (B, M) bool. Mean keys and values of a kind of groups are (B, H', groups, D).
    """
    spec = kernel.emitted.spec
    rows = sum(spec.mean_rows.values())
    # The kernel reads biases a whole tile at a time.
    bias = torch.empty(spec.batch * rows + spec.config.block_n, dtype=torch.float32, device=key.device)
    biases, made = bias[: spec.batch * rows].view(spec.batch, rows), Tensors(mean_bias=bias)
    for kind, means, routing in _mean_kernels(kernel, None if routing_args is None else routing_args.routing):
        shape = (spec.batch, spec.kv_heads, spec.mean_rows[kind], spec.head_dim)
        of_keys, of_values = key.new_empty(shape), value.new_empty(shape)
        tensors = {"k": key, "v": value, "k_means": of_keys, "v_means": of_values}
        tensors["mean_bias"] = biases[:, spec.first_mean(kind) :]
        if key_mask is not None:
            tensors["key_mask"] = key_mask
        means.run(
            tensors,
            scale,
            None if routing is None or routing_args is None else RoutingArguments(routing, routing_args.noise),
        )
        made |= {f"k_means_{kind}": of_keys, f"v_means_{kind}": of_values}
    return made


def _mean_kernels(kernel: Kernel, routing: HeadRouting | None) -> list[tuple[str, Kernel, HeadRouting | None]]:
    """Return (kind of groups, kernel, its heads) for the means of each kind that a kernel reads."""
    found = _means.get((kernel, routing))
    if found is None:
        asked = kernel.emitted.spec.problem
        with _lock:
            found = [
                (kind, _load(problem, kernel.device), None if routing is None else routing.means(asked, kind))
                for kind, problem in asked.means_read.items()
            ]
        found = _means.setdefault((kernel, routing), found)
    return found


def kernel_for(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    pattern: str,
    key_mask: bool = False,
    returns_lse: bool = False,
    has_head_table: bool = False,
) -> Kernel:
    """Return the kernel for some tensors, loaded at the first call; raises what ``attention`` raises.

    query: (B, H, N, D), key, value: (B, H', M, D).
    """
    kind = _dtype(query)
    flags = (key_mask, returns_lse, has_head_table)
    place = (layout, pattern, query.shape, key.shape, value.shape, kind, query.device, *flags)
    found = _kernels.get(place)
    if found is None or key.dtype != query.dtype or value.dtype != query.dtype or key.device != query.device:
        problem = _problem(query, key, value, layout, pattern, *flags)
        with _lock:
            found = _kernels.get(place) or _kernels.setdefault(place, _load(problem, query.device))
    return found


def load_seconds() -> float:
    """Return the seconds that this process has taken to find, emit and compile kernels."""
    return _load_seconds


def has_kernels(device: torch.device) -> bool:
    """Tell whether emitted kernels, which read the model's own order, run on a device at all."""
    return device.type == "cuda" and sys.platform == "linux" and _can_compile()


def why_no_kernel(query: torch.Tensor, value: torch.Tensor) -> str | None:
    """Say why emitted kernels cannot serve a query (B, H, N, D) and a value (B, H', M, E), None if they can."""
    return _why_no_kernel(query.device.type, query.dtype, query.shape[3], value.shape[3])


@lru_cache(maxsize=256)
def _why_no_kernel(device: str, dtype: torch.dtype, channels: int, value_channels: int) -> str | None:
    if device != "cuda":
        return f"kernels run on CUDA devices, not on {device}"
    if sys.platform != "linux":
        return f"kernels are launched on Linux, not on {sys.platform}"
    if dtype_of(dtype) is None:
        names = dict.fromkeys(each.torch_name for each in DTYPES.values())
        return f"kernels take {', '.join(names)}, not {dtype}"
    if channels not in HEAD_DIMS or value_channels != channels:
        return f"kernels take heads of a multiple of 8 channels up to 256, not {channels} and {value_channels}"
    if not _can_compile():
        return "Triton is not installed"
    return None


@lru_cache(maxsize=1)
def _can_compile() -> bool:
    """Tell whether there is a bundle or Triton, looked for once: finding a module that is not imported takes 40 µs."""
    return bundle() is not None or find_spec("triton") is not None


@lru_cache(maxsize=1)
def bundle() -> Bundle | None:
    """Open the bundle that PLANNER_BUNDLE names, None if it is not set; raises BadBundle."""
    folder = os.environ.get(BUNDLE)
    return Bundle.open(Path(folder)) if folder else None


def _problem(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    pattern: str,
    key_mask: bool,
    returns_lse: bool,
    has_head_table: bool,
) -> Problem:
    """Return the problem of some tensors; raises BadAttentionInput and MalformedValue."""
    shapes = [tuple(x.shape) for x in (query, key, value)]
    well_formed = all(len(shape) == 4 for shape in shapes) and shapes[1] == shapes[2] and shapes[0][0] == shapes[1][0]
    _require(
        well_formed and shapes[0][3] == shapes[1][3],
        f"shapes {shapes} are not (B, H, N, D), (B, H', M, D) twice",
        "Pass query, key and value of one batch and one head dimension.",
    )
    for x in (key, value):
        _require(x.dtype == query.dtype, f"query is {query.dtype}, key or value {x.dtype}", "Cast them to one dtype.")
        _require(x.device == query.device, f"query is on {query.device}, key or value on {x.device}", "Move them.")
    reason = why_no_kernel(query, value)
    _require(reason is None, str(reason), "Use planner.runtime.attention.cpu.grouped_sdpa, or other tensors.")
    (batch, heads, tokens, head_dim), (_, kv_heads, keys, _) = shapes[:2]
    major, minor = torch.cuda.get_device_capability(query.device)
    num_sms = torch.cuda.get_device_properties(query.device).multi_processor_count
    dtype = _dtype(query)
    length = TokenLayout.parse(layout).tokens
    _require(length == tokens, f'"{layout}" is {length} tokens, the query has {tokens}', "Plan again for these inputs.")
    return Problem(
        layout, pattern, batch, heads, kv_heads, keys, head_dim, dtype, 10 * major + minor, num_sms, key_mask,
        returns_lse, has_head_table,
    ).verify()  # fmt: skip


def _launches(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    rules: str,
    kernel_patterns: str,
    key_mask: bool,
) -> tuple[Launch, ...]:
    """Return the launches for some tensors, planned at the first call; raises what ``attention`` raises."""
    shapes = (query.shape, key.shape, value.shape, query.dtype, key.dtype, query.device)
    place = (layout, rules, kernel_patterns, *shapes, key_mask)
    found = _launches_of.get(place)
    if found is None:
        site = _problem(query, key, value, layout, "dense", key_mask, returns_lse=False, has_head_table=False)
        found = _launches_of.setdefault(place, launches(site, Rules.parse(rules), kernel_patterns))
    return found


def _dtype(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's element type; float32 is multiplied as tf32 where PyTorch may do so."""
    found = dtype_of(tensor.dtype, _is_tf32(tensor.dtype))
    return str(tensor.dtype) if found is None else found.name


def _is_tf32(dtype: torch.dtype) -> bool:
    """Tell whether float32 is multiplied as tf32; PyTorch is asked for float32 only, as that takes a microsecond."""
    return dtype == torch.float32 and bool(torch.backends.cuda.matmul.allow_tf32)


def _load(problem: Problem, device: torch.device) -> Kernel:
    global _load_seconds
    start = time.perf_counter()
    ahead = bundle()
    found = ahead.get(problem) if ahead is not None else None
    if found is None:
        found = Cache().get(configured(problem))
    kernel = Kernel(found.emitted, found.binary, device)
    _load_seconds += time.perf_counter() - start
    return kernel


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into new, contiguous memory, which begins at a multiple of 16 bytes."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _require(holds: bool, fault: str, remedy: str) -> None:
    if not holds:
        raise BadAttentionInput(fault, remedy)
