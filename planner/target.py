"""Targets: the facts about a device that a decision may depend on. Naming one needs no such device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from planner.errors import UnknownName


@dataclass(frozen=True)
class Target:
    """A roofline: peak rates, and the share of them that good kernels reach.

    tflops, tflops32: dense matrix products per second, bf16 and float32 (tf32 on GPUs), in TFLOP/s.
    bandwidth: device memory, GB/s.
    matmul, dense_attention, sparse_attention: share of the peak that linear layers, dense attention and grouped
    attention reach.
    raster_order: whether grouped kernels read tokens where the model has them (SM90 and later), so that nothing is
    permuted.
    step_us: host time of one unit of work, in microseconds: one launch on a GPU, one group of queries on a CPU.
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

    def peak(self, dtype: str) -> float:
        """FLOP/s for a torch dtype by name."""
        return (self.tflops32 if dtype in ("float32", "float64") else self.tflops) * 1e12

    @staticmethod
    def named(name: str) -> Target:
        """A target by name; raises UnknownName."""
        if name not in TARGETS:
            raise UnknownName("target", name, TARGETS)
        return TARGETS[name]

    @staticmethod
    def of_device(device: torch.device) -> Target:
        """The nearest target to a device, as the runtime uses it today: ``cpu``, or a GPU through torch's SDPA."""
        if device.type != "cuda" or not torch.cuda.is_available():
            return TARGETS["cpu"]
        text = torch.cuda.get_device_name(device).lower().replace(" ", "")
        named = next((name for name in TARGETS if name in text), None)
        major, minor = torch.cuda.get_device_capability(device)
        nearest = {8: "rtx4090" if minor == 9 else "a100", 9: "h100", 10: "b200"}.get(major, "rtx5090")
        return TARGETS[(named or nearest) + SDPA]


SDPA = "-sdpa"
"""Ending of the targets whose grouped attention runs group by group through torch's own attention kernels."""

SDPA_SHARE = 0.2
"""What that reaches of a kernel made for the pattern: 91 to 117 of 490 TFLOP/s on an H100 (bench/RESULTS.md)."""


def _gpu(name: str, tflops: float, bandwidth: float, dense: float, sparse: float, raster_order: bool) -> list[Target]:
    made = Target(name, tflops, tflops / 2, bandwidth, 0.7, dense, sparse, raster_order, step_us=10)
    return [made, replace(made, name=name + SDPA, sparse_attention=sparse * SDPA_SHARE, raster_order=False)]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in [
        # Peaks from the vendors' data sheets, without structured sparsity. Shares on the H100 are measured: cuDNN dense
        # attention 640 of 989 TFLOP/s, a plain Triton kernel with the closed-form index map 490. On the A100, GRAT
        # (arXiv 2505.14687) states 208 of 312 for dense; other shares are scaled from these two and untested.
        *_gpu("a100", 312, 2039, 0.67, 0.50, raster_order=False),
        *_gpu("h100", 989, 3350, 0.65, 0.50, raster_order=True),
        *_gpu("h200", 989, 4800, 0.65, 0.50, raster_order=True),
        *_gpu("b200", 2250, 8000, 0.60, 0.45, raster_order=True),
        *_gpu("rtx4090", 165, 1008, 0.80, 0.60, raster_order=False),
        *_gpu("rtx5090", 210, 1792, 0.80, 0.60, raster_order=True),
        # Two server cores (AMD EPYC with AVX-512), measured by bench/grouped_sdpa.py; other CPUs differ in the peak,
        # which moves all times alike and no decision.
        Target("cpu", 0.18, 0.18, 30, 0.7, 0.80, 0.68, raster_order=False, step_us=60, steps_per_group=True),
    ]
}
