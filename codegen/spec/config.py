"""Kernel configs: tile sizes, warps and stages. They decide how fast a kernel is, never what it computes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from planner.errors import BadSpelling

EXAMPLE = "triton{m=128,n=64,warps=8,stages=3}"


@dataclass(frozen=True)
class KernelConfig:
    """How a kernel is cut up; ``parse(str(config)) == config``.

    body: name of the kernel body that computes it (planner.codegen.spec.body). block_m, block_n: queries and keys of a
    tile. warps: of a CTA; in the Hopper bodies, of each of the warpgroups that have 64 queries. stages: tiles of keys,
    and of values, in flight; in the Hopper bodies of both together, and of an odd number values have one more.
    """

    body: str
    block_m: int
    block_n: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.body}{{m={self.block_m},n={self.block_n},warps={self.warps},stages={self.stages}}}"

    @staticmethod
    def parse(text: str) -> KernelConfig:
        """Read a spelling; raises BadSpelling."""
        match = re.fullmatch(r"(\w+)\{m=(\d{1,4}),n=(\d{1,4}),warps=(\d{1,2}),stages=(\d{1,2})\}", text)
        if not match:
            raise BadSpelling("kernel config", text, "it is not BODY{m=…,n=…,warps=…,stages=…}", EXAMPLE)
        return KernelConfig(match[1], *(int(match[at]) for at in range(2, 6)))
