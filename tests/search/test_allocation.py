"""Plans from evidence: budgets are kept, more budget is never slower, and what cannot be reached is said."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from examples import site
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from planner.errors import BadEvidence, BadOption, UnknownName, UnreachableQuality
from planner.patterns.catalogue import catalogue
from planner.patterns.layout import TokenLayout
from planner.plan.evidence import Evidence, SiteEvidence
from planner.plan.options import Options
from planner.plan.plan import Plan
from planner.plan.quality import Certificate, Quality, psnr, tolerance_limit
from planner.plan.target import Target
from planner.search.allocation import Allocator
from planner.search.budget import Budget
from planner.search.certify import certify, measured_gains
from planner.search.decide import decide

H100 = Target.named("h100")
LAYOUTS = ("text:64 | h:64 w:64", "t:9 h:32 w:48 | text:30", "text:64 | h:64 w:64")


def evidence(seed=0, layouts=LAYOUTS, heads=3, calls=4, steps=12):
    """Evidence of attention that is local by a different length in every head, and of a dense cross-attention."""
    draw = torch.Generator().manual_seed(seed)
    sites = [site(text, name=f"blocks.{n}", heads=heads, kv_heads=heads) for n, text in enumerate(layouts)]
    sites.append(site("h:64 w:64", name="cross", key_layout="text:77"))
    options = Options(pattern="dense")
    plan = Plan("Model", "x=1x2", "h100", options, decide(sites, options, H100), "timestep", 10**12, 0.01).verify()
    found = {}
    for each in sites[:-1]:
        assert isinstance(each.layout, TokenLayout)
        patterns = catalogue(each.layout)
        shares = torch.tensor([planner.patterns.density.density(pattern, each.layout) for pattern in patterns])
        locality = torch.rand(calls, 1, heads, generator=draw) * 3 + 0.2
        luck = 0.7 + 0.3 * torch.rand(calls, len(patterns), heads, generator=draw)
        recall = luck * shares[None, :, None] ** (1 / (1 + locality))
        sensitivity = torch.full((calls,), math.nan)
        sensitivity[1] = torch.rand(1, generator=draw).item() + 0.1
        power = torch.rand(calls, heads, generator=draw) + 1
        found[each.name] = SiteEvidence(
            tuple(map(str, patterns)), recall, (1 - recall) ** 2 * power[:, None], power, sensitivity
        )
    levels = tuple(1 - n / steps for n in range(steps))
    return Evidence(plan, levels, tuple(range(0, steps, steps // calls)), found, {"torch": "2"}).verify()


EVIDENCE = evidence()
ALLOCATOR = Allocator(EVIDENCE, H100)
DENSE = math.fsum(choice.seconds[0] for choice in ALLOCATOR.choices)
WORST = ALLOCATOR.within(Budget(error=math.inf)).error


@settings(max_examples=25)
@given(st.floats(0, 1.2), st.floats(0, 0.5))
def test_more_error_is_never_slower_and_never_more_than_allowed(share, more):
    tight, loose = (ALLOCATOR.within(Budget(error=WORST * each)) for each in (share, share + more))
    assert tight.error <= WORST * share * (1 + 1e-9)
    assert loose.seconds <= tight.seconds * (1 + 1e-9)


@settings(max_examples=25)
@given(st.floats(0.25, 1), st.floats(0, 0.5))
def test_more_pairs_never_lose_more_and_are_never_more_than_allowed(share, more):
    few, many = (ALLOCATOR.within(Budget(density=min(1.0, each))) for each in (share, share + more))
    assert few.density <= share * (1 + 1e-9)
    assert many.error <= few.error * (1 + 1e-9)
    assert few.plan.verify() == Plan.from_json(few.plan.to_json())


@given(st.floats(1, 3))
def test_a_speedup_is_predicted_for_the_recorded_steps(speedup):
    assert ALLOCATOR.within(Budget(speedup=speedup)).seconds <= DENSE / speedup * (1 + 1e-9)


@given(st.floats(0, 1))
def test_every_head_keeps_the_recall_asked_for(recall):
    found = ALLOCATOR.within(Budget(recall=recall))
    for name, known in EVIDENCE.sites.items():
        decision = next(decision for decision in found.plan.decisions if decision.site == name)
        for end, _, calls in EVIDENCE.ranges(3):
            for rule in decision.rules.at(end):
                if str(rule.pattern) in known.candidates:
                    kept = known.recall[list(calls), known.candidates.index(str(rule.pattern))].mean(0)
                    assert all(kept[head] >= recall - 1e-6 for head in rule.heads or range(decision.heads))
    assert ALLOCATOR.within(Budget(recall=recall / 2)).seconds <= found.seconds


@given(st.floats(0.25, 1))
def test_what_a_plan_is_predicted_to_do_can_be_told_of_the_plan_alone(share):
    found = ALLOCATOR.within(Budget(density=share))
    told = ALLOCATOR.predicted(found.plan)
    assert (told.error, told.density, told.seconds) == pytest.approx((found.error, found.density, found.seconds))


def test_sites_without_evidence_stay_as_they_were():
    for budget in ({"density": 0.3}, {"recall": 0.5}):
        tied = planner.allocate(EVIDENCE, by_head=False, **budget)
        assert all(not rule.heads for decision in tied.decisions for rule in decision.rules.rules)
    found = planner.allocate(EVIDENCE, density=0.3)
    assert found.decisions[-1] == EVIDENCE.plan.decisions[-1]
    for decision in found.decisions[:-1]:
        chosen = "chosen from evidence" if decision.is_sparse else "evidence: no pattern is worth it"
        assert decision.reason == f"{chosen} within density 0.3"
    assert any(decision.is_sparse for decision in found.decisions)
    assert found.noise == "timestep"


def test_choosing_beats_one_pattern_for_all_at_its_own_cost():
    images = Allocator(evidence(layouts=LAYOUTS[:1]), H100)
    uniform = images.uniform("crisscross{axes=lines,group=16x16}")
    ours = images.within(Budget(density=uniform.density))
    tied = Allocator(images.evidence, H100, by_head=False).within(Budget(density=uniform.density))
    assert ours.error < tied.error < uniform.error
    assert all(not rule.heads for decision in tied.plan.decisions for rule in decision.rules.rules)


@pytest.mark.parametrize("budget", [{"density": 1.0}, {"speedup": 1.0}, {"error": 0.0}, {"recall": 1.0}])
@pytest.mark.parametrize("by_head", [True, False])
def test_what_dense_meets_exactly_is_met(budget, by_head):
    # Without candidates dense is all there is; the sum of its shares is not 1 to the last bit.
    allocator = Allocator(EVIDENCE, H100, patterns=[], by_head=by_head)
    found = allocator.within(Budget(**budget))
    assert not any(decision.is_sparse for decision in found.plan.decisions)
    assert found.density == pytest.approx(1)


def test_mistakes_name_what_can_be_had():
    with pytest.raises(UnreachableQuality, match=r"no plan reaches density 0\.01.*\n.*density 0\.\d"):
        ALLOCATOR.within(Budget(density=0.01))
    with pytest.raises(UnreachableQuality, match="speedup 1e"):
        ALLOCATOR.within(Budget(speedup=1e5))
    for budget in (
        Budget(),
        Budget(error=1, density=0.5),
        Budget(recall=1.1),
        Budget(error=-1),
        Budget(error=math.nan),
    ):
        with pytest.raises(BadOption):
            ALLOCATOR.within(budget)
    with pytest.raises(BadOption, match="3 numbers"):
        Allocator(EVIDENCE, H100, gains=[1.0])
    with pytest.raises(UnknownName, match="crisscross"):
        ALLOCATOR.uniform("crisscross{axes=lines,group=9x9}")
    unmeasured = replace(EVIDENCE.sites["blocks.1"], sensitivity=torch.full((4,), math.nan))
    with pytest.raises(BadEvidence, match="broken off"):
        Allocator(replace(EVIDENCE, sites={**EVIDENCE.sites, "blocks.1": unmeasured}), H100)


@given(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=30), st.integers(1, 5), st.data())
def test_ranges_share_the_steps_and_each_has_evidence(steps, count, data):
    places = st.lists(st.integers(0, len(steps) - 1), min_size=1, unique=True)
    known = replace(EVIDENCE, steps=tuple(steps), recorded=tuple(sorted(data.draw(places))))
    ranges = known.ranges(count)
    assert 1 <= len(ranges) <= count
    assert math.isclose(sum(share for _, share, _ in ranges), 1)
    assert [end for end, _, _ in ranges] == sorted({end for end, _, _ in ranges})
    assert ranges[-1][0] == 1
    assert sorted(at for _, _, calls in ranges for at in calls) == list(range(len(known.recorded)))
    above = -math.inf
    for end, share, calls in ranges:
        held = [level for level in steps if above < level <= (end if end < 1 else math.inf)]
        assert math.isclose(len(held) / len(steps), share)
        assert all(known.steps[known.recorded[at]] in held for at in calls)
        above = end


def test_evidence_survives_its_file(tmp_path):
    EVIDENCE.save(tmp_path / "evidence.safetensors")
    loaded = Evidence.load(tmp_path / "evidence.safetensors")
    assert (loaded.plan, loaded.steps, loaded.recorded) == (EVIDENCE.plan, EVIDENCE.steps, EVIDENCE.recorded)
    assert [path.name for path in tmp_path.iterdir()] == ["evidence.safetensors"]
    for name, known in EVIDENCE.sites.items():
        assert loaded.sites[name].candidates == known.candidates
        for what in ("recall", "error", "power", "sensitivity"):
            assert torch.equal(getattr(loaded.sites[name], what).nan_to_num(-1), getattr(known, what).nan_to_num(-1))


def test_damaged_evidence_is_refused_and_what_is_no_number_names_its_site(tmp_path):
    path = tmp_path / "evidence.safetensors"
    EVIDENCE.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadEvidence, match="cannot be read"):
        Evidence.load(path)
    with pytest.raises(BadEvidence, match="cannot be read"):
        Evidence.load(tmp_path / "none.safetensors")
    broken = EVIDENCE.sites["blocks.1"]
    broken = replace(broken, recall=broken.recall.clone().fill_(math.nan))
    with pytest.raises(BadEvidence, match=r"blocks\.1(.|\n)*no numbers"):
        replace(EVIDENCE, sites={"blocks.1": broken}).verify()
    with pytest.raises(BadEvidence, match="no such site"):
        replace(EVIDENCE, sites={"blocks.9": broken}).verify()


CASES = [f"prompt {number}, seed {number}" for number in range(12)]


class Sampler:
    """Samples whose errors are those that the allocator predicts, times something of each range's and each case's."""

    def __init__(self, factors=(1.0, 2.0, 4.0), floor=1e-9, turns_at=math.inf):
        draw = torch.Generator().manual_seed(1)
        self.dense = torch.rand(len(CASES), 3, 8, 8, generator=draw)
        self.noise = torch.randn(self.dense.shape, generator=draw)
        self.luck = 0.5 + torch.rand(len(CASES), generator=draw)
        self.judge = Allocator(EVIDENCE, H100, [factor * 1e-2 for factor in factors])
        self.floor, self.turns_at, self.runs = floor, turns_at, 0

    def __call__(self, plan):
        self.runs += 1
        planned = {decision.site: decision.rules for decision in plan.decisions}
        error = self.floor
        for choice in self.judge.choices:
            decision, patterns = self.judge.decisions[choice.site], self.judge.patterns[choice.site]
            end = self.judge.levels[choice.range][0]
            rules = planned[decision.site].at(end)
            rule = next(rule for rule in rules if choice.head in (rule.heads or range(decision.heads)))
            error += choice.losses[patterns.index(rule.pattern)]
        errors = error * self.luck
        if error > self.turns_at:
            errors[0] = 10**-1.0  # one case becomes another picture, of 10 dB
        return self.dense + self.noise * errors.sqrt()[:, None, None, None]


def tuned(quality, sampler):
    return certify(EVIDENCE, H100, quality, CASES, sampler.dense, sampler, "test", "2026-01-01")


def test_gains_are_what_errors_at_a_noise_level_do():
    gains = measured_gains(EVIDENCE, H100, *(lambda s: (s.dense, s))(Sampler()), lambda _: None)
    assert gains[1] / gains[0] == pytest.approx(2, rel=0.05)
    assert gains[2] / gains[0] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("asked", [15.0, 20.0, 25.0, 30.0, 40.0])
def test_a_certified_plan_keeps_what_it_promises_and_little_more(asked):
    sampler = Sampler()
    plan = tuned(Quality(psnr=asked), sampler)
    certificate = plan.certificate
    values = psnr(sampler(plan), sampler.dense).tolist()
    assert certificate.values == pytest.approx(values)
    assert asked <= certificate.bound <= asked + 1.5  # as finely as few heads allow
    assert certificate.cases == tuple(CASES)
    assert Plan.from_json(plan.to_json()) == plan
    assert sampler.runs <= 13


def test_a_case_that_becomes_another_picture_does_not_leave_everything_dense():
    plan = tuned(Quality(psnr=20), Sampler(turns_at=1e-4))
    assert plan.certificate is not None
    assert plan.certificate.bound >= 20
    cheapest = tuned(Quality(psnr=38), Sampler())
    assert plan.attention_seconds <= cheapest.attention_seconds * 1.05


def test_what_cannot_be_reached_says_what_can():
    with pytest.raises(UnreachableQuality, match=r"no plan reaches psnr 60 dB.*\n.*with every site dense"):
        tuned(Quality(psnr=60), Sampler(floor=1e-4))
    with pytest.raises(BadOption, match="without sampling"):
        tuned(Quality(recall=0.9), Sampler())
    for wrong in (Quality(), Quality(psnr=30, ssim=0.9), Quality(psnr=0), Quality(psnr=101), Quality(ssim=1.1)):
        with pytest.raises(BadOption):
            wrong.verify()
    with pytest.raises(BadOption, match="cases"):
        certify(EVIDENCE, H100, Quality(psnr=30), CASES[:3], Sampler().dense, Sampler(), "test", "")


def test_a_quality_that_costs_nothing_takes_the_fastest_plan():
    plan = tuned(Quality(psnr=1e-3), Sampler())
    assert ALLOCATOR.within(Budget(error=math.inf)).plan.decisions == plan.decisions or (
        plan.attention_seconds == pytest.approx(ALLOCATOR.within(Budget(error=math.inf)).plan.attention_seconds)
    )


def test_damaged_certificates_are_refused():
    good = Certificate("psnr", 30.0, ("a", "b"), (31.0, 32.0), "test", "2026-01-01")
    for change in ({"values": (31.0,)}, {"metric": "recall"}, {"values": (31.0, math.nan)}, {"cases": ()}):
        with pytest.raises(planner.PlannerError):
            replace(good, **change).verify()
    assert "asked 30, measured 31.5 on average and 31 at worst in 2 cases" in str(good)


def test_so_many_cases_keep_the_bound_as_often_as_it_says():
    draw, least = torch.Generator().manual_seed(0), NormalDist().inv_cdf(0.05)
    for count, most in {3: 0.92, 6: 0.92, 16: 0.93, 44: 0.98, 45: 0.92, 64: 0.97, 400: 0.94}.items():
        values = torch.randn(2000, count, generator=draw, dtype=torch.float64)
        kept = [tolerance_limit(row) <= least for row in values.tolist()]
        assert 0.87 < sum(kept) / len(kept) < most
    assert tolerance_limit([3.0, 4.0]) == -math.inf


def test_of_many_cases_the_bound_holds_however_they_are_distributed():
    draw, least = torch.Generator().manual_seed(0), math.log(0.05)
    for count in (45, 100):
        values = torch.rand(2000, count, generator=draw, dtype=torch.float64).log()  # 5 % lie below log(0.05)
        kept = [tolerance_limit(row) <= least for row in values.tolist()]
        assert sum(kept) / len(kept) > 0.88


def test_a_tolerance_limit_of_thousands_of_values_is_one_of_the_lowest():
    values = [float(n) for n in range(100_000)]
    assert tolerance_limit(values[:44]) < 0
    assert tolerance_limit(values[:45]) == 0
    assert tolerance_limit(values) / len(values) == pytest.approx(0.05, abs=1e-3)
