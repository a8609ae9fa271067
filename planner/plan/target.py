"""Targets: the facts about a device that a decision may depend on. Naming one needs no such device.

A plug-in adds its own: ``TARGETS.register("gb10")(Target("gb10", …))``. A GPU whose name holds that of a target is it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from planner.registry import Registry


@dataclass(frozen=True)
class Target:
    """A roofline: peak rates, and the share of them that good kernels reach.

    tflops, tflops32: dense matrix products per second, bf16 and float32 (tf32 on GPUs), in TFLOP/s.
    bandwidth: device memory, GB/s.
    matmul, dense_attention, sparse_attention: share of the peak that linear layers, dense attention and grouped
    attention reach. small_groups: what grouped attention reaches of that where a group holds under 128 tokens.
    groups_of_64: the same of groups that share query tiles two by two, in grids of one, two and three axes.
    raster_order: whether grouped kernels read tokens where the model has them, so that nothing is permuted.
    step_us: host time of one unit of work, in microseconds: one launch on a GPU, one group of queries on a CPU.
    arch, num_sms: compute capability (90 for 9.0) and multiprocessors, 0 where kernels are not emitted.
    """

    name: str
    tflops: float
    tflops32: float
    bandwidth: float
    matmul: float
    dense_attention: float
    sparse_attention: float
    raster_order: bool
    step_us: float
    steps_per_group: bool = False
    small_groups: float = 1.0
    groups_of_64: tuple[float, float, float] = (1.0, 1.0, 1.0)
    arch: int = 0
    num_sms: int = 0

    def peak(self, dtype: str) -> float:
        """Return FLOP/s for a torch dtype by name."""
        return (self.tflops32 if dtype in ("float32", "float64") else self.tflops) * 1e12

    @staticmethod
    def named(name: str) -> Target:
        """Return a target by name; raises UnknownName."""
        return TARGETS[name]

    @staticmethod
    def of_device(device: torch.device) -> Target:
        """Return the nearest target to a device: ``cpu``, or a GPU, without Triton through torch's SDPA."""
        if device.type != "cuda" or not torch.cuda.is_available():
            return TARGETS["cpu"]
        text = torch.cuda.get_device_name(device).lower().replace(" ", "")
        named = max((name for name in TARGETS if name in text), key=len, default=None)
        major, minor = torch.cuda.get_device_capability(device)
        nearest = {8: "rtx4090" if minor == 9 else "a100", 9: "h100", 10: "b200"}.get(major, "rtx5090")
        target = TARGETS[named or nearest]
        return target if find_spec("triton") else TARGETS.get(target.name + SDPA, target)


TARGETS: Registry[Target] = Registry("target")
"""Targets by name."""

SDPA = "-sdpa"
"""Ending of the targets whose grouped attention runs group by group through torch's own attention kernels."""

SDPA_SHARE = 0.16
"""What that reaches of dense attention: 91 to 117 of 640 TFLOP/s in FLUX steps on an H100, 2026-11-22."""

SMALL_GROUPS, GROUPS_OF_64 = 0.55, (0.9, 0.9, 0.8)
"""Groups of 8x8 run at 317 to 430 TFLOP/s on an H100, one to a query tile, and at 567 to 707, two to a tile, where
groups of 16x16 run at 659 to 740; groups of 2x4x8 at 272 to 369 and at 444 to 660 where those of 4x8x8 run at 591 to
740 (bench/RESULTS.md). Two to a tile are what the Hopper body makes of them.
"""


def _gpu(
    name: str, arch: int, num_sms: int, tflops: float, bandwidth: float, dense: float, sparse: float
) -> list[Target]:
    """Make the targets of a GPU, with emitted kernels and without."""
    emitted = Target(
        *(name, tflops, tflops / 2, bandwidth, 0.7, dense, sparse, True, 10),
        small_groups=SMALL_GROUPS,
        groups_of_64=GROUPS_OF_64 if arch == 90 else (SMALL_GROUPS, SMALL_GROUPS, SMALL_GROUPS),
        arch=arch,
        num_sms=num_sms,
    )
    through_sdpa = replace(
        emitted,
        name=name + SDPA,
        sparse_attention=dense * SDPA_SHARE,
        raster_order=False,
        small_groups=1.0,
        groups_of_64=(1.0, 1.0, 1.0),
        arch=0,
        num_sms=0,
    )
    return [emitted, through_sdpa]


for _target in [
    # Peaks from the vendors' data sheets, without structured sparsity. Shares on the H100 are measured: cuDNN dense
    # attention 640 of 989 TFLOP/s, the emitted kernel 680 (bench/RESULTS.md). On the A100, GRAT
    # (arXiv 2505.14687) states 208 of 312 for dense; other shares are scaled from these two and untested.
    *_gpu("a100", 80, 108, 312, 2039, 0.67, 0.50),
    *_gpu("h100", 90, 132, 989, 3350, 0.65, 0.69),
    *_gpu("h200", 90, 132, 989, 4800, 0.65, 0.69),
    *_gpu("b200", 100, 148, 2250, 8000, 0.60, 0.45),
    *_gpu("rtx4090", 89, 128, 165, 1008, 0.80, 0.60),
    *_gpu("rtx5090", 120, 170, 210, 1792, 0.80, 0.60),
    # Two server cores (AMD EPYC with AVX-512), measured by bench/grouped_sdpa.py; other CPUs differ in the peak,
    # which moves all times alike and no decision.
    Target("cpu", 0.18, 0.18, 30, 0.7, 0.80, 0.68, raster_order=False, step_us=60, steps_per_group=True),
]:
    TARGETS.register(_target.name)(_target)
