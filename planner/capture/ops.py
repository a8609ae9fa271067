"""Facts about operations of a graph that several stages rely on.

What torch itself knows (what an operation writes to, whose memory its result is, whether it is elementwise) is asked of
its schema and tags. What torch does not know is one table, ``OPS``. A plug-in adds to it::

    OPS.register("roll_rows")(OpInfo("roll_rows", Kind.MOVEMENT))

What a stage does with an operation (a rule of provenance, a proof of equivariance) is registered with that stage, by
the operation's name or by its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import torch

from planner.registry import Registry

Rule = TypeVar("Rule")

SDPA: Callable[..., torch.Tensor] = torch._C._nn.scaled_dot_product_attention  # pyright: ignore
"""Torch's own attention, whatever a program puts in its place in ``torch.nn.functional``."""


class Kind(StrEnum):
    """What an operation does to the elements of its first argument."""

    COPY = "copy"
    """Keep each in its place, copied or cast."""

    POINTWISE = "pointwise"
    """Compute each from those in the same place, broadcast."""

    MOVEMENT = "movement"
    """Put them in other places, leave some out, repeat some."""

    JOIN = "join"
    """Put several tensors beside each other."""

    INDEXING = "indexing"
    """Choose or overwrite those that indices or a mask name."""

    NORMALIZATION = "normalization"
    """Scale each by those along some dimensions."""

    REDUCTION = "reduction"
    """Compute one of all along some dimensions."""

    CONTRACTION = "contraction"
    """Multiply with a second tensor and sum along some dimensions."""

    CONVOLUTION = "convolution"
    """Multiply with a kernel and sum over windows."""

    FACTORY = "factory"
    """Make a new tensor of its shape, with none of its values."""

    READ = "read"
    """Hand its values to Python."""

    OTHER = "other"
    """Anything else."""


@dataclass(frozen=True)
class OpInfo:
    """What is known of an operation beyond its schema and tags.

    name: as op_name spells it. is_steered: values of a further argument decide which elements go where. takes_sizes:
    further arguments are sizes, which tensors of one element may stand for. allocates: the result is memory of its
    own, which a schema does not promise for an operation that is composed of others. aliases: the result may be memory
    of the first argument, although the schema does not say so. keeps_values: no value changes, although the schema
    says that the first argument is written to. is_conjunction: of truth values it is true where all are true.
    factors: places of the two arguments of a contraction or convolution that are multiplied.
    """

    name: str
    kind: Kind
    is_steered: bool = False
    takes_sizes: bool = False
    allocates: bool = False
    aliases: bool = False
    keeps_values: bool = False
    is_conjunction: bool = False
    factors: tuple[int, int] | None = None


OPS: Registry[OpInfo] = Registry("operation", builtin=(__name__,))
"""The operations that torch alone does not tell enough about, by name."""


def _register(kind: Kind, names: str, **facts: Any) -> None:
    for name in names.split():
        OPS.register(name)(OpInfo(name, kind, **facts))


_register(Kind.COPY, "to _to_copy contiguous detach alias lift_fresh lift_fresh_copy type_as float half bfloat16")
_register(Kind.COPY, "clone", allocates=True)
_register(Kind.COPY, "detach_", keeps_values=True)
_register(Kind.POINTWISE, "mul bitwise_and logical_and", allocates=True, is_conjunction=True)
_register(Kind.POINTWISE, "__and__", is_conjunction=True)
_register(Kind.POINTWISE, "__or__ __xor__")
_register(Kind.POINTWISE, "dropout feature_dropout", aliases=True)
_register(Kind.MOVEMENT, "permute transpose t mT mH numpy_T swapaxes movedim unsqueeze squeeze expand_as slice select")
_register(Kind.MOVEMENT, "split_with_sizes tensor_split chunk unbind flatten tile flip roll unfold diagonal")
_register(Kind.MOVEMENT, "pixel_shuffle pixel_unshuffle view_as view_as_complex view_as_real")
_register(Kind.MOVEMENT, "expand narrow split unflatten repeat reshape view", takes_sizes=True)
_register(Kind.MOVEMENT, "getitem _unsafe_view", aliases=True)
_register(Kind.MOVEMENT, "pad constant_pad_nd")
_register(Kind.MOVEMENT, "gather take_along_dim repeat_interleave", is_steered=True)
_register(Kind.JOIN, "cat stack", allocates=True)
_register(Kind.JOIN, "concat pad_sequence")
_register(Kind.INDEXING, "index index_select index_put index_put_ index_copy index_copy_", is_steered=True)
_register(Kind.INDEXING, "masked_scatter where", is_steered=True)
_register(Kind.INDEXING, "embedding copy_ scatter_add index_add")
_register(Kind.NORMALIZATION, "layer_norm rms_norm group_norm", allocates=True)
_register(Kind.NORMALIZATION, "softmax _softmax log_softmax instance_norm batch_norm")
_register(Kind.REDUCTION, "mean sum amax amin max min var std prod any all norm linalg_vector_norm")
_register(Kind.CONTRACTION, "linear matmul bmm mm", allocates=True, factors=(0, 1))
_register(Kind.CONTRACTION, "addmm", factors=(1, 2))
_register(Kind.CONTRACTION, "einsum scaled_dot_product_attention")
_register(Kind.CONVOLUTION, "conv1d conv2d conv3d convolution", factors=(0, 1))
_register(Kind.FACTORY, "empty_like zeros_like ones_like full_like rand_like randn_like", allocates=True)
_register(Kind.FACTORY, "new_empty new_zeros new_ones new_full empty zeros ones full", allocates=True)
_register(Kind.READ, "item tolist numpy nonzero __bool__ __int__ __float__ __index__")


def op_name(target: Any) -> str:
    """Return ``linear`` for ``aten.linear.default``, ``library::scan`` for another library's, else the Python name."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.removeprefix("aten::")
    return getattr(target, "__name__", str(target))


def info(target: Any) -> OpInfo:
    """Return what is known of an operation, from the table or else from torch's tags."""
    name = op_name(target)
    if name in OPS:
        return OPS[name]
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return OpInfo(name, Kind.OTHER)
    return OpInfo(name, Kind.POINTWISE, allocates=not _returns_alias(target))


def find_rule(target: Any, by_name: Mapping[str, Rule], by_kind: Mapping[str, Rule]) -> Rule | None:
    """Return what a stage does with an operation: its own rule or that of its kind, None if there is neither."""
    known = info(target)
    for rules, name in ((by_name, known.name), (by_kind, known.kind)):
        if name in rules:
            return rules[name]
    return None


def is_pure(target: Any) -> bool:
    """Tell whether an operation's result depends on nothing but its arguments, and it changes none of them."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__module__", "") in ("_operator", "math", "builtins")
    is_changing = target._schema.is_mutable and not info(target).keeps_values
    return not is_changing and torch.Tag.nondeterministic_seeded not in target.tags


def is_in_place(target: Any) -> bool:
    """Tell whether an operation changes one of its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def is_view(target: Any) -> bool:
    """Tell whether an operation's result shares memory with its first argument."""
    return isinstance(target, torch._ops.OpOverload) and any(
        argument.alias_info is not None for argument in target._schema.arguments
    )


def changed_by(node: torch.fx.Node) -> list[Any]:
    """Return the arguments that a node's operation changes in place."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    places = [at for at, each in enumerate(arguments) if each.alias_info is not None and each.alias_info.is_write]
    return [node.args[at] if at < len(node.args) else node.kwargs.get(arguments[at].name) for at in places]


def is_alias(node: torch.fx.Node) -> bool:
    """Tell whether a result may be the memory of the operation's first input."""
    if not node.all_input_nodes or node.op != "call_function":
        return False
    return _returns_alias(node.target) or info(node.target).aliases


def is_overwritten(node: torch.fx.Node) -> bool:
    """Tell whether a graph writes into the memory of a node's result, through itself or any view."""
    while is_alias(node):
        node = node.all_input_nodes[0]
    return _is_written(node)


def _is_written(node: torch.fx.Node) -> bool:
    """Tell whether a graph writes into the memory of a node's result, through itself or its own views."""
    return any(
        _writes(user, node) or (is_alias(user) and user.all_input_nodes[0] is node and _is_written(user))
        for user in node.users
    )


def _writes(user: torch.fx.Node, node: torch.fx.Node) -> bool:
    return not info(user.target).keeps_values and any(
        node in (changed if isinstance(changed, list | tuple) else [changed]) for changed in changed_by(user)
    )


def _returns_alias(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)
