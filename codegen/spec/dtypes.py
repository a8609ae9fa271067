"""Element types of a kernel's tensors: one table of all that is known of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from planner.errors import BadSpelling, UnknownName


@dataclass(frozen=True)
class Dtype:
    """An element type.

    name: in spellings. torch_name: of the tensors that it is stored in; Gluon has the same names. triton: in the types
    of a kernel's arguments. tma: CUtensorMapDataType. bytes: of an element. largest: greatest finite value.
    multiplied_as: what tensor cores multiply: the type itself, or of float32 the way that it is split.
    """

    name: str
    torch_name: str
    triton: str
    tma: int
    bytes: int
    largest: float
    multiplied_as: str

    @property
    def of_tensors(self) -> torch.dtype:
        """The element type of tensors that hold it."""
        return getattr(torch, self.torch_name)

    @property
    def pointer(self) -> str:
        """The type of a pointer to elements, as Triton spells it."""
        return f"*{self.triton}"

    @property
    def products(self) -> int:
        """Products on tensor cores that one product of elements takes."""
        return 3 if self.multiplied_as == "tf32x3" else 1

    @property
    def is_split(self) -> bool:
        """Whether tensor cores multiply something else than the elements themselves."""
        return self.multiplied_as != self.triton

    @property
    def exponent(self) -> int:
        """The greatest power of two that is an element, as an exponent."""
        return math.frexp(self.largest)[1] - 1

    def holds(self, other: Dtype) -> bool:
        """Tell whether elements of another type can be converted to this one and stay what they are."""
        return other == self or other.bytes < self.bytes


DTYPES = {
    each.name: each
    for each in (
        Dtype("bfloat16", "bfloat16", "bf16", 9, 2, (2 - 2**-7) * 2.0**127, "bf16"),
        Dtype("float16", "float16", "fp16", 6, 2, 65504.0, "fp16"),
        # In three products each, with a relative error of about 1e-6.
        Dtype("float32", "float32", "fp32", 7, 4, (2 - 2**-23) * 2.0**127, "tf32x3"),
        # In one product, with a relative error of about 5e-4: float32 where PyTorch may do so.
        Dtype("tf32", "float32", "fp32", 7, 4, (2 - 2**-23) * 2.0**127, "tf32"),
    )
}
"""All element types by name."""

TENSORS = ("q", "k", "v", "out")
"""The tensors of a kernel that have an element type of their own."""

EXAMPLE = "bfloat16{out=float32}"


@dataclass(frozen=True)
class Dtypes:
    """The element types of queries, keys, values and output; ``parse(str(dtypes)) == dtypes``.

    A spelling is that of the queries' type, and in braces the tensors whose type is another: ``bfloat16``,
    ``bfloat16{out=float32}``.
    """

    q: Dtype
    k: Dtype
    v: Dtype
    out: Dtype

    def __str__(self) -> str:
        others = [f"{name}={self.of(name).name}" for name in TENSORS if self.of(name) != self.q]
        return self.q.name + (f"{{{','.join(others)}}}" if others else "")

    def of(self, tensor: str) -> Dtype:
        """Return the type of a tensor by an argument's name: ``q``, ``k_means_16x16``, ``o``."""
        letter = tensor[0]
        return self.out if letter == "o" else getattr(self, letter)

    @property
    def is_uniform(self) -> bool:
        """Whether all are of one type."""
        return self.q == self.k == self.v == self.out

    @staticmethod
    @lru_cache(maxsize=256)
    def parse(text: str) -> Dtypes:
        """Read a spelling; raises BadSpelling and UnknownName."""
        match = re.fullmatch(r"(\w+)(?:\{((?:\w+=\w+,)*\w+=\w+)\})?", text)
        if not match:
            raise BadSpelling("dtype", text, "it is not a name with, in braces, tensors of other types", EXAMPLE)
        fields = [field.split("=") for field in match[2].split(",")] if match[2] else []
        changed = {tensor: dtype_named(name) for tensor, name in fields}
        if not changed.keys() <= {"k", "v", "out"} or len(changed) < len(fields):
            raise BadSpelling("dtype", text, "the types in braces are not those of k, v and out, each once", EXAMPLE)
        first = dtype_named(match[1])
        return Dtypes(first, **{name: changed.get(name, first) for name in TENSORS[1:]})


def dtype_named(name: str) -> Dtype:
    """Return a type by name; raises UnknownName."""
    if name not in DTYPES:
        raise UnknownName("dtype", name, DTYPES)
    return DTYPES[name]


def dtype_of(dtype: torch.dtype, multiplies_tf32: bool = False) -> Dtype | None:
    """Find the type of tensors' elements, None where kernels have none for it.

    multiplies_tf32: whether float32 may be multiplied as tf32.
    """
    found = _of_torch(dtype)
    return DTYPES["tf32"] if multiplies_tf32 and found == DTYPES["float32"] else found


@lru_cache(maxsize=64)
def _of_torch(dtype: Any) -> Dtype | None:
    return next((each for each in DTYPES.values() if each.of_tensors == dtype), None)
