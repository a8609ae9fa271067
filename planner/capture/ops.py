"""Facts about ATen operations that several stages rely on."""

from __future__ import annotations

from typing import Any

import torch


def op_name(target: Any) -> str:
    """``linear`` for ``aten.linear.default``; the Python name of anything else."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[1]
    return getattr(target, "__name__", str(target))


def is_pure(target: Any) -> bool:
    """Whether an operation's result depends on nothing but its arguments."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__module__", "") in ("_operator", "math", "builtins")
    is_changing = target._schema.is_mutable and op_name(target) != "detach_"  # which changes no values
    return not is_changing and torch.Tag.nondeterministic_seeded not in target.tags


def is_in_place(target: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def is_view(target: Any) -> bool:
    """Whether an operation's result shares memory with its first argument."""
    return isinstance(target, torch._ops.OpOverload) and any(
        argument.alias_info is not None for argument in target._schema.arguments
    )


def changed_by(node: torch.fx.Node) -> list[Any]:
    """The arguments that a node's operation changes in place."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    places = [at for at, each in enumerate(arguments) if each.alias_info is not None and each.alias_info.is_write]
    return [node.args[at] if at < len(node.args) else node.kwargs.get(arguments[at].name) for at in places]


def is_alias(node: torch.fx.Node) -> bool:
    """Whether a result may be the memory of the operation's first input."""
    schema = getattr(node.target, "_schema", None)
    if not node.all_input_nodes or node.op != "call_function":
        return False
    returns_alias = schema is not None and any(value.alias_info is not None for value in schema.returns)
    return returns_alias or op_name(node.target) in ("getitem", "dropout")
