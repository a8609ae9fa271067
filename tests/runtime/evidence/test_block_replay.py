"""Calls of models replayed from a block on: the same result, from half the work."""

import pytest
import torch
from zoo import FAMILIES

import planner
from planner.runtime.evidence.block_replay import BlockReplay, block_of


class Chain(torch.nn.Module):
    """Blocks one after the other, with options that break replay."""

    def __init__(self, skips=False, twice=False, keeps=False, block=torch.nn.Linear):
        super().__init__()
        self.blocks = torch.nn.ModuleList(block(4, 4) for _ in range(4))
        self.skips, self.twice, self.keeps = skips, twice, keeps

    def forward(self, x):
        results = [x]
        for block in self.blocks:
            results.append(block(results[-1]))
            if self.keeps:
                results[-1].add_(1)
        if self.twice:
            results.append(self.blocks[1](results[-1]))
        return results[-1] + results[1] if self.skips else results[-1]


class Writes(torch.nn.Linear):
    """Writes into its argument."""

    def forward(self, x):
        result = super().forward(x)
        x.mul_(2)
        return result


NAMES = [f"blocks.{number}" for number in range(4)]


def test_blocks_before_the_one_that_is_reached_are_not_run(no_grad):
    model, x = Chain(), torch.randn(2, 4)
    whole, calls, linear = model(x), [], torch.nn.Linear.forward

    def forward(self, x):
        calls.append(self)
        return linear(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", forward)
        replay = BlockReplay(model, (x,), {}, NAMES)
        assert not calls
        for at, name in enumerate(NAMES):
            assert replay.reach(name)
            assert replay.skipped == set(NAMES[:at])
            calls.clear()
            assert torch.equal(replay.run(), whole)
            assert len(calls) == 4 - at
    assert not replay.reach(NAMES[0]), "it does not go back"
    assert all("forward" not in block.__dict__ for block in model.blocks)


def test_writes_into_the_results_of_skipped_blocks_are_not_kept(no_grad):
    model, x = Chain(keeps=True), torch.randn(2, 4)
    whole, replay = model(x), BlockReplay(model, (x,), {}, NAMES)
    assert replay.reach("blocks.2")
    for _ in range(2):
        assert torch.equal(replay.run(), whole)


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_that_write_into_their_inputs_write_once(first, no_grad):
    model, x = Chain(block=Writes), torch.randn(2, 4)
    whole = model(x.clone())
    replay = BlockReplay(model, (x.clone(),), {}, NAMES)
    for name in NAMES[first:]:
        assert replay.reach(name)
        for _ in range(2):
            assert torch.equal(replay.run(), whole)


def test_a_skip_connection_gives_nan_and_blocks_that_run_twice_are_not_replayed(no_grad):
    x = torch.randn(2, 4)
    replay = BlockReplay(Chain(skips=True), (x,), {}, NAMES)
    assert replay.reach("blocks.0")
    assert not replay.run().isnan().any()
    assert replay.reach("blocks.3")
    assert replay.run().isnan().all()
    for model, names in ((Chain(twice=True), NAMES), (Chain(), NAMES[::-1]), (Chain(), [])):
        assert not BlockReplay(model, (x,), {}, names).reach("blocks.1")


def test_blocks_are_found_by_the_paths_of_their_modules():
    assert block_of("transformer_blocks.3.attn") == "transformer_blocks.3"
    assert block_of("embedder.refiner.blocks.0.attn.1") == "embedder.refiner.blocks.0"
    assert block_of("attn") == "attn"
    assert block_of("blocks.11") == "blocks.11"


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_diffusers_are_replayed_from_each_block(name, no_grad):
    model, kwargs = FAMILIES[name]()
    kwargs = {**kwargs, "return_dict": False}
    (whole,) = model(**kwargs)
    plan = planner.make_plan(model, kwargs=kwargs, pattern="dense")
    blocks = list(dict.fromkeys(block_of(decision.site) for decision in plan.decisions))
    replay = BlockReplay(model, (), kwargs, blocks)
    for block in blocks:
        assert replay.reach(block)
        (result,) = replay.run()
        torch.testing.assert_close(result, whole)
