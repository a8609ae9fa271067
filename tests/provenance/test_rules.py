"""The table of operations and the rules of provenance: what they name exists, and what they say is true."""

import pytest
import torch
import torch.nn.functional as F

from planner.capture.call import Call
from planner.capture.ops import OPS, Kind, info, is_alias, op_name
from planner.capture.trace import capture_module
from planner.errors import BadPlugin, MalformedValue
from planner.provenance.propagate import trace_provenance
from planner.provenance.rules.base import OpCall
from planner.provenance.rules.table import KIND_RULES, RULES
from planner.runtime.graph import equivariance

aten = torch.ops.aten


def ours(registry):
    """Names of the project's own entries; those of other libraries' operations are qualified."""
    return [name for name in registry if "::" not in name]


@pytest.mark.parametrize("name", sorted({*ours(OPS), *ours(RULES), *ours(equivariance.RULES)}))
def test_every_name_is_that_of_an_operation(name):
    assert name == "getitem" or hasattr(aten, name) or hasattr(torch.Tensor, name)


@pytest.mark.parametrize("registry", [KIND_RULES, equivariance.KIND_RULES])
def test_every_kind_is_one(registry):
    assert {Kind(name) for name in registry}


def test_names_of_other_libraries_are_qualified():
    assert op_name(aten.linear.default) == "linear"
    assert op_name(torch.ops.quantized.linear.default) == "quantized::linear"
    assert info(torch.ops.quantized.linear.default).kind is Kind.OTHER


X, MASK = torch.randn(4, 4), torch.rand(4, 4) > 0.5
CALLS = {
    "cat": lambda: torch.cat([X]),
    "stack": lambda: torch.stack([X]),
    "clone": lambda: X.clone(),
    "matmul": lambda: X @ X,
    "bmm": lambda: torch.bmm(X[None], X[None]),
    "mm": lambda: torch.mm(X, X),
    "linear": lambda: F.linear(X, X),
    "layer_norm": lambda: F.layer_norm(X, (4,)),
    "rms_norm": lambda: F.rms_norm(X, (4,)),
    "group_norm": lambda: F.group_norm(X, 2),
    "mul": lambda: X * 1,
    "bitwise_and": lambda: MASK & MASK,
    "logical_and": lambda: MASK.logical_and(MASK),
    "empty_like": lambda: torch.empty_like(X),
    "zeros_like": lambda: torch.zeros_like(X),
    "ones_like": lambda: torch.ones_like(X),
    "full_like": lambda: torch.full_like(X, 1),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X),
    "new_empty": lambda: X.new_empty(1),
    "new_zeros": lambda: X.new_zeros(1),
    "new_ones": lambda: X.new_ones(1),
    "new_full": lambda: X.new_full((1,), 1),
    "empty": lambda: torch.empty(1),
    "zeros": lambda: torch.zeros(1),
    "ones": lambda: torch.ones(1),
    "full": lambda: torch.full((1,), 1.0),
}


@pytest.mark.parametrize("name", sorted(name for name in ours(OPS) if OPS[name].allocates))
def test_what_allocates_returns_memory_of_its_own(name):
    storage = CALLS[name]().untyped_storage().data_ptr()
    assert storage not in [each.untyped_storage().data_ptr() for each in (X, MASK)]


def test_torch_tells_what_is_pointwise_and_allocates():
    assert (info(aten.relu.default).kind, info(aten.relu.default).allocates) == (Kind.POINTWISE, True)
    assert (info(aten.relu_.default).kind, info(aten.relu_.default).allocates) == (Kind.POINTWISE, False)
    assert info(aten.cumsum.default).kind is Kind.OTHER


def test_views_are_aliases_whether_their_schema_says_so_or_not():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for target in (aten.view.default, aten._unsafe_view.default, aten.dropout.default):
        assert is_alias(graph.call_function(target, (x,)))
    assert not is_alias(graph.call_function(aten.relu.default, (x,)))


class Summing(torch.nn.Module):
    def forward(self, x):
        return x.cumsum(1)


def test_a_rule_that_returns_another_shape_is_named(monkeypatch):
    def misshapen(call: OpCall):
        return call.first[:, :1]

    monkeypatch.setitem(RULES._entries, "cumsum", misshapen)
    x = torch.randn(1, 4, 4, 4)
    with pytest.raises(MalformedValue) as error:
        trace_provenance(capture_module(Summing(), (x,), {}), Call.of(Summing(), (x,), {}))
    assert str(error.value) == (
        "MalformedValue: the shadow of a result of cumsum is not well formed.\n"
        f"  The rule in {__name__} returned shape (1, 1, 4, 4) for (1, 4, 4, 4).\n"
        "  Return shadow.expand(call.shape), of a shadow with size 1 along dimensions in which it does not vary."
    )


def test_an_operation_has_one_rule():
    with pytest.raises(BadPlugin, match=r"registers the rule of provenance 'linear', which planner\.provenance"):
        RULES.register("linear")(lambda call: None)
