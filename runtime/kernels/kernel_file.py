"""A compiled kernel as one file: a line of JSON that says what it is, then machine code, both sealed by digests.

Reading one runs nothing: it is parsed, checked field by field and compared with its digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import Argument, Emitted, ViewArgument
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.tiling.boxes import View
from planner.errors import PlannerError, clip
from planner.runtime.cuda.binary import Binary

FORMAT = 3
"""Raised where the record of a kernel gets other fields, or other names for them."""

MAX_HEADER = 2**22


@dataclass(frozen=True)
class KernelFile:
    """A kernel that can be launched without emitting or compiling; ``from_bytes(to_bytes(x)) == x``.

    toolchain: versions and fingerprint of what compiled it.
    """

    emitted: Emitted
    binary: Binary
    toolchain: dict[str, str]

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        emitted, binary = self.emitted, self.binary
        body = {
            "spec": asdict(emitted.spec),
            "arguments": [asdict(argument) for argument in emitted.arguments],
            "grid": emitted.grid,
            "partial_rows": emitted.partial_rows,
            "arrivals": emitted.arrivals,
            "retry_flags": emitted.retry_flags,
            "waits": emitted.waits,
            "warps": emitted.warps,
            "maxnreg": emitted.maxnreg,
            "symbol": binary.symbol,
            "binary_warps": binary.warps,
            "shared": binary.shared,
            "parameters": binary.parameters,
            "tensor_maps": binary.tensor_maps,
            "code_sha256": hashlib.sha256(binary.code).hexdigest(),
            "source": emitted.source,
            "toolchain": self.toolchain,
        }
        text = json.dumps(body)
        seal = {"planner_kernel": FORMAT, "sha256": hashlib.sha256(text.encode()).hexdigest(), "kernel": body}
        return json.dumps(seal).encode() + b"\n" + binary.code

    @staticmethod
    def from_bytes(content: bytes) -> KernelFile:
        """Read a file's content; raises ValueError that says what is wrong with it."""
        end = content.find(b"\n", 0, MAX_HEADER)
        if end < 0:
            raise ValueError("it has no header line")
        try:
            seal = json.loads(content[:end])
            if seal["planner_kernel"] != FORMAT:
                written = clip(repr(seal["planner_kernel"]))
                raise ValueError(f"its format is {written}, and this planner reads format {FORMAT} alone")
            body, code = seal["kernel"], content[end + 1 :]
            if hashlib.sha256(json.dumps(body).encode()).hexdigest() != seal["sha256"]:
                raise ValueError("its header does not have its digest")
            if hashlib.sha256(code).hexdigest() != body["code_sha256"]:
                raise ValueError("its machine code does not have its digest")
            return _kernel_file(body, code)
        except (KeyError, TypeError, AttributeError, PlannerError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"it does not describe a kernel ({type(error).__name__})") from None


def _kernel_file(body: dict[str, Any], code: bytes) -> KernelFile:
    fields = dict(body["spec"])
    config = KernelConfig(**fields.pop("config"))
    emitted = Emitted(
        spec=KernelSpec(config=config, **fields).verify(),
        source=str(body["source"]),
        arguments=tuple(_argument(argument) for argument in body["arguments"]),
        grid=int(body["grid"]),
        partial_rows=int(body["partial_rows"]),
        arrivals=int(body["arrivals"]),
        retry_flags=int(body["retry_flags"]),
        waits=bool(body["waits"]),
        warps=int(body["warps"]),
        maxnreg=body["maxnreg"],
    )
    symbol = str(body["symbol"])
    if not re.fullmatch(r"\w{1,200}", symbol):
        raise ValueError("it names no kernel")
    binary = Binary(
        code=code,
        symbol=symbol,
        warps=int(body["binary_warps"]),
        shared=int(body["shared"]),
        parameters=tuple(map(str, body["parameters"])),
        tensor_maps=tuple((int(swizzle), tuple(map(int, box))) for swizzle, box in body["tensor_maps"]),
    )
    return KernelFile(emitted, binary, {str(k): str(v) for k, v in body["toolchain"].items()})


def _argument(fields: dict[str, Any]) -> Argument:
    if "view" not in fields:
        return Argument(**fields)
    view = View(int(fields["view"]["origin"]), tuple((int(n), int(s)) for n, s in fields["view"]["axes"]))
    rest = {name: value for name, value in fields.items() if name not in ("view", "box")}
    return ViewArgument(**rest, view=view, box=tuple(map(int, fields["box"])))
