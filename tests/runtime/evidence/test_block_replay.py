"""Calls of models taken up at a block: the same result, from half the work."""

import pytest
import torch
from zoo import FAMILIES

import planner
from planner.runtime.evidence.block_replay import Resumed, block_of


class Chain(torch.nn.Module):
    """Blocks one after the other, with what a test wants to go wrong."""

    def __init__(self, skips=False, twice=False, keeps=False, block=torch.nn.Linear):
        super().__init__()
        self.blocks = torch.nn.ModuleList(block(4, 4) for _ in range(4))
        self.skips, self.twice, self.keeps = skips, twice, keeps

    def forward(self, x):
        made = [x]
        for block in self.blocks:
            made.append(block(made[-1]))
            if self.keeps:
                made[-1].add_(1)
        if self.twice:
            made.append(self.blocks[1](made[-1]))
        return made[-1] + made[1] if self.skips else made[-1]


class Writes(torch.nn.Linear):
    """Writes into what it is given."""

    def forward(self, x):
        made = super().forward(x)
        x.mul_(2)
        return made


NAMES = [f"blocks.{number}" for number in range(4)]


def test_blocks_before_the_one_that_is_reached_are_not_run(no_grad):
    model, x = Chain(), torch.randn(2, 4)
    whole, calls, linear = model(x), [], torch.nn.Linear.forward

    def forward(self, x):
        calls.append(self)
        return linear(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", forward)
        resumed = Resumed(model, (x,), {}, NAMES)
        assert not calls
        for at, name in enumerate(NAMES):
            assert resumed.reach(name)
            assert resumed.passed == set(NAMES[:at])
            calls.clear()
            assert torch.equal(resumed.run(), whole)
            assert len(calls) == 4 - at
    assert not resumed.reach(NAMES[0]), "it does not go back"
    assert all("forward" not in block.__dict__ for block in model.blocks)


def test_what_blocks_write_into_their_arguments_is_not_kept(no_grad):
    model, x = Chain(keeps=True), torch.randn(2, 4)
    whole, resumed = model(x), Resumed(model, (x,), {}, NAMES)
    assert resumed.reach("blocks.2")
    for _ in range(2):
        assert torch.equal(resumed.run(), whole)


@pytest.mark.parametrize("first", [0, 1])
def test_what_blocks_write_into_what_they_are_given_is_written_once(first, no_grad):
    model, x = Chain(block=Writes), torch.randn(2, 4)
    whole = model(x.clone())
    resumed = Resumed(model, (x.clone(),), {}, NAMES)
    for name in NAMES[first:]:
        assert resumed.reach(name)
        for _ in range(2):
            assert torch.equal(resumed.run(), whole)


def test_a_skip_connection_shows_and_blocks_that_run_twice_are_not_taken_up(no_grad):
    x = torch.randn(2, 4)
    resumed = Resumed(Chain(skips=True), (x,), {}, NAMES)
    assert resumed.reach("blocks.0")
    assert not resumed.run().isnan().any()
    assert resumed.reach("blocks.3")
    assert resumed.run().isnan().all()
    for model, names in ((Chain(twice=True), NAMES), (Chain(), NAMES[::-1]), (Chain(), [])):
        assert not Resumed(model, (x,), {}, names).reach("blocks.1")


def test_blocks_are_found_by_the_paths_of_their_modules():
    assert block_of("transformer_blocks.3.attn") == "transformer_blocks.3"
    assert block_of("embedder.refiner.blocks.0.attn.1") == "embedder.refiner.blocks.0"
    assert block_of("attn") == "attn"
    assert block_of("blocks.11") == "blocks.11"


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_diffusers_are_taken_up_at_each_block(name, no_grad):
    model, kwargs = FAMILIES[name]()
    kwargs = {**kwargs, "return_dict": False}
    (whole,) = model(**kwargs)
    plan = planner.make_plan(model, kwargs=kwargs, pattern="dense")
    blocks = list(dict.fromkeys(block_of(decision.site) for decision in plan.decisions))
    resumed = Resumed(model, (), kwargs, blocks)
    for block in blocks:
        assert resumed.reach(block)
        (result,) = resumed.run()
        torch.testing.assert_close(result, whole)
