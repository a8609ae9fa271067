"""Context parallelism: two processes that share a model's tokens and heads compute what one does."""

import dataclasses

import diffusers
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import ContextParallelConfig
from zoo import FAMILIES, FORCE

import planner
from planner.errors import UnplannedParallelism
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rule, Rules
from planner.runtime.eager.context_parallel import Parallelism

GROUPS = {"flux": "3x5", "qwen": "3x5", "wan": "1x3x5"}


def case(name):
    torch.manual_seed(0)
    model, inputs = FAMILIES[name]()
    if name == "qwen":
        model = diffusers.QwenImageTransformer2DModel.from_config({**model.config, "num_attention_heads": 4}).eval()
        inputs["encoder_hidden_states"] = torch.randn(2, 8, 16)
        inputs["encoder_hidden_states_mask"] = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    return model, inputs | {"return_dict": False}


def per_head(plan):
    """Return the plan with only the last head of every sparse site sparse."""
    decisions = []
    for decision in plan.decisions:
        if decision.is_sparse:
            *others, last = range(decision.heads)
            (pattern,) = decision.rules.patterns
            rules = Rules(tuple(sorted([Rule(Dense(), tuple(others)), Rule(pattern, (last,))], key=str)))
            density = (len(others) + decision.density) / decision.heads
            decision = dataclasses.replace(decision, pattern=str(rules), density=density)
        decisions.append(decision)
    return dataclasses.replace(plan, decisions=tuple(decisions))


def on_one_of_two(rank, store, name, results):
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers counts devices by accelerators
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with torch.no_grad():
        model, inputs = case(name)
        compiled = planner.compile(model, pattern="crisscross", group=GROUPS[name], **FORCE)
        alone = compiled(**inputs)[0]
        plan = planner.report(compiled).plans[0]
        dense = model(**inputs)[0]
        by_head = planner.compile(model, plan=per_head(plan))
        alone_by_head = by_head(**inputs)[0]
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        shared = planner.compile(model, pattern="crisscross", group=GROUPS[name], **FORCE)
        together = shared(**inputs)[0]
        by_head = planner.compile(model, plan=per_head(plan))
        results[rank] = {
            "error": float((together - alone).abs().max()),
            "error by head": float((by_head(**inputs)[0] - alone_by_head).abs().max()),
            "effect": float((alone - dense).abs().max()),
            "effect by head": float((alone_by_head - dense).abs().max()),
            "decisions": planner.report(shared).plans[0].decisions == plan.decisions,
        }
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("name", GROUPS)
def test_two_processes_compute_what_one_does(name, tmp_path):
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(on_one_of_two, (tmp_path / "store", name, results), nprocs=2)
        for result in results.values():
            assert result["error"] < 0.01 * result["effect"]
            assert result["error by head"] < 0.01 * result["effect by head"]
            assert result["decisions"]
        assert len(results) == 2


class Spread(torch.nn.Module):
    """A model that says it is spread over devices."""

    _cp_plan = None

    def __init__(self, **config):
        super().__init__()
        self._parallel_config = diffusers.ParallelConfig(context_parallel_config=ContextParallelConfig(**config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ring_degree": 2}, "ring_degree=2.*part by part"),
        ({"ulysses_degree": 2, "ulysses_anything": True}, "ulysses_anything=True.*not known ahead"),
    ],
)
def test_what_no_plan_can_follow_is_refused(config, message):
    with pytest.raises(UnplannedParallelism, match=f"(?s){message}.*ulysses_degree="):
        Parallelism.of(Spread(**config))


def decision_of(layout, heads):
    model, inputs = FAMILIES["flux"]()
    decision = planner.make_plan(model, (), inputs, pattern="crisscross", group="3x5", **FORCE).decisions[0]
    tokens = TokenLayout.parse(layout).tokens
    return dataclasses.replace(decision, layout=layout, heads=heads, kv_heads=heads, queries=tokens, keys=tokens)


@pytest.mark.parametrize(
    ("layout", "heads", "reason"),
    [
        ("encoder_hidden_states:8 | hidden_states[h:12 w:16]", 4, None),
        ("hidden_states[h:12 w:16]", 4, None),
        ("learned:2 | hidden_states[h:12 w:16]", 4, "the order in which 2 devices have the tokens"),
        ("encoder_hidden_states:7 | hidden_states[h:12 w:16]", 4, "encoder_hidden_states:7 does not divide among 2"),
        ("hidden_states[h:12 w:16]", 3, "3 heads do not divide among 2 devices"),
    ],
)
def test_where_a_plan_cannot_be_followed_attention_stays_dense(layout, heads, reason):
    two = Parallelism(2, 0, frozenset(["hidden_states", "encoder_hidden_states"]))
    why = two.why_not(decision_of(layout, heads))
    assert why == reason if reason is None else why.startswith(reason)


def test_each_device_has_its_part_of_every_tensor():
    order, inverse = Parallelism(2, 0, frozenset()).order("a:4 | h:2 w:3", torch.device("cpu"))
    tokens = torch.tensor([0, 1, 4, 5, 6, 2, 3, 7, 8, 9])  # those of the layout, in the order of two devices
    assert tokens[order].tolist() == list(range(10))
    assert torch.equal(tokens[order][inverse], tokens)


def test_heads_keep_their_patterns_where_they_go():
    decision = dataclasses.replace(
        decision_of("hidden_states[h:12 w:16]", 4),
        pattern="crisscross{axes=lines,group=3x5}[heads=1-2]; dense[heads=0,3]",
    )
    shares = [Parallelism(2, rank, frozenset()).share(decision) for rank in range(2)]
    assert [share.pattern for share in shares] == [
        "crisscross{axes=lines,group=3x5}[heads=1]; dense[heads=0]",
        "crisscross{axes=lines,group=3x5}[heads=0]; dense[heads=1]",
    ]
    whole = [Parallelism(4, rank, frozenset()).share(decision).pattern for rank in range(4)]
    assert whole == ["dense", "crisscross{axes=lines,group=3x5}", "crisscross{axes=lines,group=3x5}", "dense"]
    assert {share.heads for share in shares} == {2}
