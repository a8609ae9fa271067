"""Permutations moved out of layers: rules on values, whole models, random networks."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import problems
from torch.fx.experimental.proxy_tensor import make_fx
from zoo import FAMILIES, FORCE, GROUPS

import planner
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.patterns.density import density
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.plan.options import Options
from planner.plan.target import Target
from planner.runtime.attention.cpu import grouped_sdpa
from planner.runtime.attention.gather_plan import make_gather_plan
from planner.runtime.attention.group_hierarchy import GroupHierarchy, group_runs
from planner.runtime.graph.equivariance import GroupedOrder, find_equivariance
from planner.runtime.graph.hoist_permutations import hoist, permute
from planner.runtime.graph.rewrite import rewrite
from planner.runtime.masked_dense import MaskedDense
from planner.stages import plan_capture

pytestmark = pytest.mark.usefixtures("no_grad")


# Grouped order


@given(problems())
def test_tensors_in_grouped_order_give_a_result_in_grouped_order(problem):
    layout, _, pattern = problem
    hierarchy = GroupHierarchy.of([pattern])
    assert GroupHierarchy.parse(str(hierarchy)) == hierarchy
    order = make_gather_plan(str(layout), str(pattern), torch.device("cpu"), str(hierarchy)).order
    q, k, v = (torch.randn(1, 2, layout.tokens, 4) for _ in range(3))
    mask = torch.rand(1, 1, 1, layout.tokens) > 0.3
    plain = grouped_sdpa(q, k, v, str(layout), str(pattern), attn_mask=mask)
    q, k, v = (x[:, :, order] for x in (q, k, v))
    ours = grouped_sdpa(q, k, v, str(layout), str(pattern), attn_mask=mask[..., order], token_order=str(hierarchy))
    torch.testing.assert_close(ours, plain[:, :, order])


def test_groups_that_nest_share_an_order():
    sizes, patterns = (12, 20), [f"crisscross{{group={group}}}" for group in ("2x2", "4x8", "4x4")]
    parsed = list(map(parse_pattern, patterns))
    hierarchy = GroupHierarchy.of(parsed)
    assert str(hierarchy) == "4x8 4x4 2x2"
    order = hierarchy.token_order(sizes)
    assert sorted(order.tolist()) == list(range(240))
    assert all(group_runs(pattern.grid(sizes), order) is not None for pattern in parsed)
    assert group_runs(parse_pattern("crisscross{group=3x4}").grid(sizes), order) is None
    assert group_runs(parse_pattern("crisscross{group=4x4,offset=2x2}").grid(sizes), order) is None


# Rules on values

N, START = 6, 2
LENGTH = START + N + 3
PERMUTATION = torch.cat(
    [torch.arange(START), START + torch.tensor([3, 0, 5, 1, 4, 2]), torch.arange(START + N, LENGTH)]
)
"""A permutation of the N tokens that begin at START in a sequence of LENGTH."""

OPERATIONS = {
    "add": lambda x, y: x + y,
    "broadcast": lambda x, y: x * y[:1],
    "gelu": lambda x, y: F.gelu(x),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "type_as": lambda x, y: x.type_as(y),
    "linear": lambda x, y: F.linear(x, torch.ones(3, x.shape[-1])),
    "matmul": lambda x, y: x @ torch.ones(x.shape[-1], 5),
    "layer_norm": lambda x, y: F.layer_norm(x, x.shape[-1:]),
    "softmax": lambda x, y: x.softmax(-1),
    "softmax over 1": lambda x, y: x.softmax(1),
    "mean": lambda x, y: x.mean(1),
    "mean kept": lambda x, y: x.mean((0, 1), keepdim=True),
    "view": lambda x, y: x.reshape(x.shape[0], x.shape[1], -1, 1),
    "flatten": lambda x, y: x.flatten(1),
    "unflatten": lambda x, y: x.unflatten(-1, (-1, 1)),
    "unsqueeze": lambda x, y: x.unsqueeze(1),
    "permute": lambda x, y: x.permute(2, 0, 1),
    "transpose": lambda x, y: x.transpose(0, -1),
    "expand": lambda x, y: x[None].expand(4, -1, -1, -1),
    "repeat_interleave": lambda x, y: x.repeat_interleave(2, dim=2),
    "slice of channels": lambda x, y: x[..., 1:],
    "slice of rows": lambda x, y: x[:, 1:],
    "slice of columns": lambda x, y: x[:, :, :4],
    "every second row": lambda x, y: x[:, ::2],
    "first row": lambda x, y: x[:, 0],
    "fourth row": lambda x, y: x[:, 3],
    "split": lambda x, y: x.split([START, LENGTH - START], 1)[1] if x.shape[1] == LENGTH else x.split(2, -1)[0],
    "chunk": lambda x, y: x.chunk(2, -1)[1],
    "chunk of rows": lambda x, y: x.chunk(2, 1)[0],
    "unbind": lambda x, y: x.unbind(0)[0],
    "unbind the last": lambda x, y: x.unbind(-1)[1],
    "cat of channels": lambda x, y: torch.cat([x, y], -1),
    "cat of rows": lambda x, y: torch.cat([y, x], 1),
    "stack": lambda x, y: torch.stack([x, y], 1),
    "complex": lambda x, y: torch.view_as_real(torch.view_as_complex(x[..., :2].contiguous()) * 1j),
    "flip": lambda x, y: x.flip(1),
    "cumsum": lambda x, y: x.cumsum(1),
    "roll": lambda x, y: x.roll(1, 2),
    "attention": lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None]),
    "attention of another": lambda x, y: F.scaled_dot_product_attention(y[None], x[None], x[None]),
    "causal attention": lambda x, y: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
}


def result_order(operation, dim, both):
    """Find the order of a result for inputs in grouped order along dim, and check it on values; None without a rule."""
    shape = [4, 4, 4]
    shape[dim] = LENGTH
    x, y = torch.randn(shape), torch.randn(shape)
    graph = make_fx(operation, pre_dispatch=True)(x, y)
    orders, grouped = {}, GroupedOrder(dim, START, N)
    inputs = {"x_1": (x, grouped), "y_1": (y, grouped if both else None)}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            orders[node] = inputs[str(node.target)][1]
        elif node.op == "output":
            (result,) = node.all_input_nodes
        else:
            equivariance = find_equivariance(node, orders)
            if equivariance is None and any(orders[parent] is not None for parent in node.all_input_nodes):
                return None
            wanted = {} if equivariance is None else equivariance.inputs
            if any(orders[parent] != wanted.get(parent) for parent in node.all_input_nodes):
                return None
            orders[node] = None if equivariance is None else equivariance.output
    ours = operation(*(permute(value, dim, PERMUTATION) if order else value for value, order in inputs.values()))
    plain, order = operation(x, y), orders[result]
    if order is not None:
        start, length = order.start, plain.shape[order.dim]
        index = torch.cat(
            [torch.arange(start), PERMUTATION[START : START + N] - START + start, torch.arange(start + N, length)]
        )
        plain = plain.index_select(order.dim, index)
    torch.testing.assert_close(ours, plain)
    return order


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_that_rules_call_equivariant_are(name, dim, both):
    result_order(OPERATIONS[name], dim, both)


@pytest.mark.parametrize(
    ("name", "dim", "order"),
    [
        ("add", 1, GroupedOrder(1, START, N)),
        ("linear", 1, GroupedOrder(1, START, N)),
        ("linear", 2, None),
        ("layer_norm", 2, None),
        ("view", 1, GroupedOrder(1, START, N)),
        ("permute", 1, GroupedOrder(2, START, N)),
        ("slice of rows", 1, GroupedOrder(1, START - 1, N)),
        ("every second row", 1, None),
        ("fourth row", 1, None),
        ("split", 1, GroupedOrder(1, 0, N)),
        ("cat of rows", 1, None),
        ("flip", 1, None),
        ("cumsum", 1, None),
        ("attention", 1, GroupedOrder(2, START, N)),
        ("causal attention", 1, None),
        ("complex", 1, GroupedOrder(1, START, N)),
    ],
)
def test_common_operations_are_shown_to_be_equivariant(name, dim, order):
    assert result_order(OPERATIONS[name], dim, both=True) == order


# Whole models


def deepened(model):
    """Return the model with two more blocks of each kind in front."""
    for name, blocks in list(model.named_modules()):
        if isinstance(blocks, torch.nn.ModuleList) and "blocks" in name.rpartition(".")[2] and "refiner" not in name:
            parent = model.get_submodule(name.rpartition(".")[0])
            more = [copy.deepcopy(blocks[0]) for _ in range(2)]
            setattr(parent, name.rpartition(".")[2], torch.nn.ModuleList([*more, *blocks]))
    return model


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_permutes_as_often_as_one_layer_does(name, backend):
    model, kwargs = FAMILIES[name]()
    deepened(model)
    options = {"pattern": "crisscross", "group": GROUPS.get(name, "1x3x5"), "backend": backend, **FORCE}
    compiled = planner.compile(model, **options)
    ours = compiled(**kwargs, return_dict=False)[0]
    report = planner.report(compiled)
    (plan,), ((hoisting,),) = report.plans, report.hoistings
    with MaskedDense(plan):
        torch.testing.assert_close(ours, model(**kwargs, return_dict=False)[0], rtol=1e-5, atol=1e-5)
    assert hoisting.before == 4 * sum(decision.is_sparse for decision in plan.decisions)
    assert hoisting.after == sum(hoisting.by_module.values())
    # Latte's temporal layers merge the tokens of a frame with the batch, so its spatial layers begin anew each time.
    assert hoisting.after == hoisting.before if name == "latte" else hoisting.after <= 11
    assert f"tokens are permuted {hoisting.after} times a call instead of {hoisting.before}" in str(report)


@pytest.mark.parametrize("name", ["flux", "hunyuanvideo", "wan"])
def test_groups_that_do_not_nest_are_permuted_at_their_sites(name):
    model, kwargs = FAMILIES[name]()
    deepened(model)
    group = GROUPS.get(name, "1x3x5")
    compiled = planner.compile(model, pattern="crisscross", group=group, alternate_offsets=True, **FORCE)
    ours = compiled(**kwargs, return_dict=False)[0]
    (plan,) = planner.report(compiled).plans
    with MaskedDense(plan):
        torch.testing.assert_close(ours, model(**kwargs, return_dict=False)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "do_nest"), [(("6x8", "2x4"), True), (("6x8", "4x4"), False)])
def test_layers_of_other_groups_share_an_order_if_they_nest(groups, do_nest):
    model, kwargs = FAMILIES["flux"]()
    deepened(model)
    plan = planner.make_plan(model, kwargs={**kwargs, "return_dict": False}, pattern="crisscross", group="6x8", **FORCE)
    layout = TokenLayout.parse(plan.decisions[0].layout)
    patterns = itertools.cycle(parse_pattern(f"crisscross{{axes=lines,group={group}}}") for group in groups)
    decisions = [
        replace(decision, pattern=str(pattern), density=density(pattern, layout))
        for decision, pattern in zip(plan.decisions, patterns, strict=False)
    ]
    plan = replace(plan, decisions=tuple(decisions)).verify()
    compiled = planner.compile(model, plan=plan)
    ours = compiled(**kwargs, return_dict=False)[0]
    with MaskedDense(plan):
        torch.testing.assert_close(ours, model(**kwargs, return_dict=False)[0], rtol=1e-5, atol=1e-5)
    ((hoisting,),) = planner.report(compiled).hoistings
    assert (hoisting.after <= 8) == do_nest


# Random networks


class Network(torch.nn.Module):
    """Tokens of an image behind text, and drawn operations on them, attention among them."""

    def __init__(self, steps, text, h, w):
        super().__init__()
        self.steps, self.text, self.h, self.w = steps, text, h, w
        self.linear = torch.nn.Linear(8, 8)
        self.table = torch.nn.Parameter(torch.randn(text + h * w, 8))
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image, words):
        x = torch.cat([words, image.flatten(2).transpose(1, 2)], 1)
        for step in self.steps:
            x = getattr(self, step)(x)
        return x

    def attend(self, x):
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in (self.linear(x), x, x * 0.5))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def project(self, x):
        return F.gelu(self.linear(F.layer_norm(x, (8,))))

    def add_table(self, x):
        return x * self.table.cos() + self.table[None].sin()

    def gate(self, x):
        return x * x.mean(1, keepdim=True).sigmoid()

    def part(self, x):
        words, image = x[:, : self.text], x[:, self.text :]
        return torch.cat([words * 2, self.linear(image)], 1)

    def convolve(self, x):
        image = x[:, self.text :].transpose(1, 2).unflatten(2, (self.h, self.w))
        return torch.cat([x[:, : self.text], self.conv(image).flatten(2).transpose(1, 2)], 1)

    def shift(self, x):
        return x.roll(1, 1)

    def rotate(self, x):
        first, second = x.unflatten(-1, (4, 2)).unbind(-1)
        return torch.stack([-second, first], -1).flatten(2)

    def write(self, x):
        out = torch.empty_like(x)
        out[..., ::2] = x[..., 1::2]
        out[..., 1::2] = x[..., ::2]
        return out

    def overwrite(self, x):
        y = x.clone()
        y[:, 0] = 1.0
        y += x
        return y


STEPS = [name for name in vars(Network) if not name.startswith("_") and name != "forward"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(STEPS + ["attend"] * 4), min_size=2, max_size=9),
    st.integers(0, 3),
    st.sampled_from([(4, 6), (5, 7), (4, 8)]),
    st.sampled_from(["2x3", "2x2", "3x3"]),
    st.booleans(),
)
def test_random_networks_compute_the_same(steps, text, size, group, alternate):
    model = Network(["attend", *steps], text, *size).eval()
    inputs = (torch.randn(2, 8, *size), torch.randn(2, text, 8))
    options = Options(pattern="crisscross", group=group, min_speedup=0.0, alternate_offsets=alternate)
    capture, call = capture_module(model, inputs, {}), Call.of(model, inputs, {})
    planned = plan_capture(options, Target.named("cpu"), capture, call)
    rewrite(capture, planned, call)
    plain = capture.graph(*capture.inputs)
    hoisting = hoist(capture, planned.plan)
    torch.testing.assert_close(capture.graph(*capture.inputs), plain, rtol=1e-4, atol=1e-5)
    assert hoisting is not None
    calls = sum(node.target is permute for node in capture.graph.graph.nodes)
    hoisted = sum("token_order" in node.kwargs for node in capture.graph.graph.nodes)
    at_sites = 4 * (sum(decision.is_sparse for decision in planned.plan.decisions) - hoisted)
    assert hoisting.after == calls + at_sites <= hoisting.before


def test_a_permuted_copy_follows_a_change_in_place():
    class Careless(Network):
        def forward(self, image, words):
            x = torch.cat([words, image.flatten(2).transpose(1, 2)], 1)
            for _ in range(4):
                y = self.attend(x)
                first = y[:, 0]
                y = y + self.table
                first += 1
                x = self.attend(y) + first[:, None]
            return x

    model = Careless([], 2, 4, 6).eval()
    inputs = (torch.randn(1, 8, 4, 6), torch.randn(1, 2, 8))
    compiled = planner.compile(model, group="2x3", pattern="crisscross", **FORCE)
    ours = compiled(*inputs)
    with MaskedDense(planner.report(compiled).plans[0]):
        torch.testing.assert_close(ours, model(*inputs), rtol=1e-4, atol=1e-5)


def test_permuting_keeps_the_layout_in_memory():
    x = torch.randn(2, 3, LENGTH, 4).transpose(1, 2)
    permuted = permute(x, 1, PERMUTATION)
    assert torch.equal(permuted, x[:, PERMUTATION])
    assert permuted.stride() == x.stride()
    assert math.prod(permuted.shape) == TokenLayout.parse(f"n:{LENGTH}").tokens * 24
