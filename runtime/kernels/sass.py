"""Inspection: what a compiled kernel is made of, read out of its machine code. Needs no GPU."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from triton import knobs

from planner.codegen.spec.feasibility import SHARED_KIB
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.runtime.kernels.cache import build

TENSOR = {"HGMMA": "wgmma", "HMMA": "mma", "UTCHMMA": "tcgen05"}
"""Machine instructions of the tensor cores, by the names that they have in PTX."""

COPIES = {"UTMALDG": "TMA", "LDGSTS": "cp.async"}
"""Machine instructions that copy to shared memory while the program goes on."""

_REGISTERS = 65536


@dataclass(frozen=True)
class Facts:
    """What the assembler says of a kernel, and which instructions came out.

    registers: per thread at launch. spills: bytes written to local memory per thread. shared: bytes. programs: how many
    fit on a multiprocessor. tensor, copies: counts of instructions. warnings: of the assembler, serialised wgmma among
    them.
    """

    registers: int
    spills: int
    shared: int
    programs: int
    tensor: tuple[tuple[str, int], ...]
    copies: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]


def inspect(spec: KernelSpec) -> Facts:
    """Compile a spec and look at the result; raises what emission and compilation raise."""
    log = io.StringIO()
    with knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        made = build(spec)
    text = log.getvalue()
    registers = int(_only(r"Used (\d+) registers", text))
    opcodes = _opcodes(made.binary.code)
    shared = made.binary.shared
    fits = [
        SHARED_KIB[spec.arch] * 1024 // max(1, shared),
        _REGISTERS // (registers * 32 * made.binary.warps),
    ]
    return Facts(
        registers,
        int(_only(r"(\d+) bytes spill stores", text)),
        shared,
        min(fits),
        tuple((name, opcodes[code]) for code, name in TENSOR.items() if opcodes[code]),
        tuple((name, opcodes[code]) for code, name in COPIES.items() if opcodes[code]),
        tuple(line.strip() for line in text.splitlines() if "warning" in line.lower() or "C75" in line),
    )


def _opcodes(code: bytes) -> Counter[str]:
    """Count each machine instruction in the code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", listing))


def _only(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise AssertionError(f"the assembler's log has no {pattern!r}")
    return found[1]
