"""Recording evidence of a model while it samples, and a plan tuned from it, from beginning to end."""

from dataclasses import replace

import pytest
import torch
from zoo import FAMILIES, flux, flux_inputs

import planner
from planner.errors import BadEvidence, BadOption, NothingRecorded
from planner.patterns.spelling import parse_pattern
from planner.plan.evidence import Evidence
from planner.plan.quality import Quality
from planner.runtime.evidence import record as recording
from planner.runtime.evidence import scoring_mode
from planner.runtime.evidence.block_replay import BlockReplay
from planner.runtime.masked_dense import MaskedDense, masked_dense

SITES = {"transformer_blocks.0.attn", "single_transformer_blocks.0.attn"}


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model, _ = flux()
    with torch.no_grad():  # random weights attend nearly alike everywhere; these do not
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            block.attn.to_q.weight *= 6
    return model, flux_inputs(24, 32, text=8, batch=3)


def sampler(inputs, steps=5, states=None):
    """Euler steps of a flow from noise; samples in [0, 1]."""

    @torch.no_grad()
    def sample(model):
        x = inputs["hidden_states"]
        for step in range(steps):
            step_inputs = {**inputs, "hidden_states": x, "timestep": torch.full((len(x),), 1 - step / steps)}
            x = x - model(**step_inputs, return_dict=False)[0] / steps
            if states is not None:
                states.append(x)
        return x.sigmoid().unflatten(2, (4, 4)).permute(0, 2, 1, 3)

    return sample


@pytest.fixture(scope="module")
def evidence(case):
    return planner.record(case[0], sampler(case[1]), queries=64)


def test_sampling_goes_on_as_if_nothing_was_recorded(case, evidence):
    model, inputs = case
    plain, watched = [], []
    sampler(inputs, states=plain)(model)
    planner.record(model, sampler(inputs, states=watched), queries=16)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert set(evidence.sites) == SITES
    assert evidence.steps == pytest.approx((1, 0.8, 0.6, 0.4, 0.2))
    assert (evidence.recorded, evidence.plan.noise) == ((0, 1, 2, 3, 4), "timestep")


def test_scores_are_those_of_the_first_calls_own_attention(case, evidence):
    model, inputs = case
    calls = []

    class Watch(MaskedDense):
        def attend(self, decision, arguments):
            calls.append((decision, dict(arguments)))
            return super().attend(decision, arguments)

    first = {**inputs, "timestep": torch.ones(3), "return_dict": False}
    with torch.no_grad(), Watch(evidence.plan):
        model(**first)
    for decision, arguments in calls:
        site = evidence.sites[decision.site]
        q, k, v = (arguments[name] for name in ("query", "key", "value"))
        dense = masked_dense(q, k, v, decision.layout, "dense")
        for at in range(0, len(site.candidates), 5):
            sparse = masked_dense(q, k, v, decision.layout, site.candidates[at])
            error = (sparse - dense).square().sum(3)[:, :, 8:].mean((0, 2))
            torch.testing.assert_close(site.error[0, at], error, rtol=0.5, atol=1e-4)  # 64 queries stand for 768


def test_sensitivity_is_what_one_site_under_a_candidate_does_to_the_output(case, evidence):
    model, inputs = case
    first = {**inputs, "timestep": torch.ones(3), "return_dict": False}
    with torch.no_grad():
        (dense,) = model(**first)
    for name, site in evidence.sites.items():
        assert int((~site.sensitivity.isnan()).sum()) == 3
        possible = []
        for at, text in enumerate(site.candidates):
            if not parse_pattern(text).pooled:
                decisions = [replace(d, pattern=text if d.site == name else "dense") for d in evidence.plan.decisions]
                with torch.no_grad(), MaskedDense(replace(evidence.plan, decisions=tuple(decisions))):
                    (changed,) = model(**first)
                possible.append(float((changed - dense).square().mean() / site.error[0, at].sum()))
        assert any(value == pytest.approx(float(site.sensitivity[0]), rel=1e-2) for value in possible)


def test_probes_are_replayed_from_the_block_of_their_site(case, monkeypatch):
    model, inputs = case
    run, results = BlockReplay.run, []
    monkeypatch.setattr(
        BlockReplay, "run", lambda self: results.append((len(self.skipped), run(self))) or results[-1][1]
    )
    replayed = planner.record(model, sampler(inputs), queries=16)
    assert [skipped for skipped, _ in results] == [0, 1] * 3
    assert not any(result[0].isnan().any() for _, result in results)
    monkeypatch.setattr(BlockReplay, "reach", lambda self, block: False)
    whole = planner.record(model, sampler(inputs), queries=16)
    for name, site in replayed.sites.items():
        torch.testing.assert_close(site.sensitivity, whole.sites[name].sensitivity, rtol=1e-4, atol=0, equal_nan=True)


def test_an_interrupted_recording_is_continued(case, evidence, tmp_path, monkeypatch):
    model, inputs = case
    path = tmp_path / "evidence.safetensors"

    def breaks(twin, left=[3]):  # noqa: B006  counts down over the run
        sample = sampler(inputs)

        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return twin(*args, **kwargs)

        return sample(call)

    with pytest.raises(KeyboardInterrupt):
        planner.record(model, breaks, path=path, queries=64)
    assert Evidence.load(path).recorded == (0, 1, 2)
    scored, real = [], scoring_mode.score
    monkeypatch.setattr(scoring_mode, "score", lambda *args: scored.append(1) or real(*args))
    continued = planner.record(model, sampler(inputs), path=path, queries=64)
    assert len(scored) == 2 * len(SITES)
    for name, site in continued.sites.items():
        torch.testing.assert_close(site.error, evidence.sites[name].error)
    assert Evidence.load(path).recorded == evidence.recorded
    with pytest.raises(BadEvidence, match="recorded of a FluxTransformer2DModel with inputs hidden_states=3x768x16"):
        planner.record(model, sampler(flux_inputs(32, 24, batch=2)), path=path)


def test_long_runs_leave_evidence_of_few_calls(case):
    model, inputs = case
    recorded = planner.record(model, sampler(inputs, steps=11), calls=2, queries=16)
    assert len(recorded.steps) == 11
    assert 2 <= len(recorded.recorded) <= 4
    assert all(len(calls) for _, _, calls in recorded.ranges(2))


@pytest.mark.parametrize(
    ("steps", "sampler_calls", "scored", "kept"), [(11, None, 7, 3), (11, 11, 2, 2), (11, 3, 5, 3), (2, 2, 2, 2)]
)
def test_a_run_of_known_length_scores_no_call_in_vain(case, monkeypatch, steps, sampler_calls, scored, kept):
    model, inputs = case
    modes = []

    class Counting(recording.ScoringMode):
        def __init__(self, *args):
            modes.append(self)
            super().__init__(*args)

    monkeypatch.setattr(recording, "ScoringMode", Counting)
    options = {"calls": 2, "queries": 16, "sampler_calls": sampler_calls}
    recorded = planner.record(model, sampler(inputs, steps=steps), **options)
    assert (len(modes), len(recorded.recorded)) == (scored, kept)


def test_a_recall_is_kept_without_sampling(case, evidence):
    def sample(model):
        raise AssertionError("nothing needs to be sampled")

    plan = planner.tune(case[0], sample, Quality(recall=0.5), cases=[], evidence=evidence, target="h100")
    assert plan.decisions == planner.allocate(evidence, recall=0.5).decisions


def test_recordings_without_evidence_say_why(case):
    model, inputs = case
    with pytest.raises(NothingRecorded, match="did not call the model"):
        planner.record(model, lambda _: None)
    with pytest.raises(NothingRecorded, match="No attention site"):
        planner.record(model, sampler(flux_inputs(3, 4)))
    with pytest.raises(BadOption, match="calls"):
        planner.record(model, sampler(inputs), calls=0)
    with pytest.raises(BadOption, match="sampler_calls"):
        planner.record(model, sampler(inputs), sampler_calls=0)
    broken = {**inputs, "hidden_states": torch.full_like(inputs["hidden_states"], float("nan"))}
    with pytest.raises(BadEvidence, match=r"attn(.|\n)*no numbers"):
        planner.record(model, sampler(broken, steps=1))

    def two_shapes(twin):
        sampler(inputs, steps=1)(twin)
        sampler(flux_inputs(24, 32, batch=1), steps=1)(twin)

    with pytest.raises(BadEvidence, match="A call has inputs"):
        planner.record(model, two_shapes)


class Masked(torch.nn.Module):
    """Three attentions over a grid: one free, one with a mask that differs from query to query, one causal."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(8, 8)
        self.register_buffer("mask", torch.ones(256, 256, dtype=torch.bool).tril())

    def forward(self, x, timestep):
        t = self.project(x.flatten(2).mT) + torch.sin(timestep * 1000)[:, None, None]
        for options in ({}, {"attn_mask": self.mask}, {"is_causal": True}):
            q = t.unflatten(2, (2, 4)).transpose(1, 2)
            t = t + torch.nn.functional.scaled_dot_product_attention(q, q, q, **options).transpose(1, 2).flatten(2)
        return (t.mT.unflatten(2, x.shape[2:]),)


def test_sites_that_cannot_be_scored_leave_no_evidence():
    model, x = Masked().eval(), torch.randn(1, 8, 16, 16)

    def sample(twin):
        for level in (1.0, 0.5):
            twin(x, torch.full((1,), level))

    recorded = planner.record(model, sample, queries=16)
    assert len(recorded.plan.decisions) == 3
    assert list(recorded.sites) == [recorded.plan.decisions[0].site]


def test_a_tuned_plan_keeps_what_was_asked_when_it_runs(case, evidence):
    model, inputs = case
    messages = []
    dense = sampler(inputs)(model)
    plan = planner.tune(
        model,
        sampler(inputs),
        Quality(psnr=35),
        cases=["a, seed 0", "b, seed 1", "c, seed 2"],
        evidence=evidence,
        progress=messages.append,
    )
    planned = sampler(inputs)(planner.compile(model, plan=plan))
    assert Quality(psnr=35).of(planned, dense) == pytest.approx(plan.certificate.values, abs=0.1)
    assert plan.certificate.bound >= 35
    assert any(decision.is_sparse for decision in plan.decisions)
    assert len(messages) >= 4
    kept = planner.tune(model, sampler(inputs), Quality(recall=0.9), cases=[], evidence=evidence)
    assert kept == planner.allocate(evidence, recall=0.9, target="cpu")


def test_videos_are_recorded_too():
    torch.manual_seed(0)
    model, kwargs = FAMILIES["hunyuanvideo"]()
    grown = {**kwargs, "hidden_states": torch.randn(1, 4, 5, 32, 32)}
    grown |= {name: value[:1] for name, value in kwargs.items() if name != "hidden_states" and torch.is_tensor(value)}

    @torch.no_grad()
    def sample(twin):
        twin(**grown, return_dict=False)

    recorded = planner.record(model, sample, queries=32)
    assert len(recorded.sites) == 2
    groups = {parse_pattern(text).group for site in recorded.sites.values() for text in site.candidates}
    assert groups == {(2, 4, 8), (2, 8, 8), (4, 8, 8)}
