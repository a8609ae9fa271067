import json
from dataclasses import replace

import pytest
from examples import site, targets
from hypothesis import given
from hypothesis import strategies as st
from strategies import layouts, options

from planner.errors import BadPlanFile, PlannerError, PlanVersion, UnreachableBudget
from planner.plan.options import Options
from planner.plan.plan import Plan
from planner.plan.quality import Certificate
from planner.plan.target import Target
from planner.search.decide import candidates_of, decide


def plan(sites, opts=None, target="h100"):
    opts = opts or Options()
    decisions = decide(sites, opts, Target.named(target))
    noise = "timestep/1000" if any(decision.is_gated for decision in decisions) else None
    return Plan("Model", "x=1x2", target, opts, decisions, noise, 10**12, 0.01).verify()


GATED = "crisscross{axes=lines,group=16x16}[noise=0:0.5]; dense[noise=0.5:1]"
PLAN = plan([site(name="a.0"), site("text:256", name="a.1"), site("t:9 h:30 w:30", name="b")])
GATED_DENSITY = (PLAN.decisions[0].density + 1) / 2


@given(st.lists(layouts(), max_size=3), options, targets)
def test_a_plan_survives_json(drawn, opts, target):
    try:
        made = plan([site(layout, name=str(i)) for i, layout in enumerate(drawn)], opts, target.name)
    except UnreachableBudget:
        return
    assert Plan.from_json(made.to_json()) == made


def test_save_and_load(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_that_cannot_be_written_leaves_the_old_one(tmp_path):
    target = tmp_path / "plan.json"
    target.mkdir()
    with pytest.raises(OSError, match="plan"):
        PLAN.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def corrupted(**changes):
    data = json.loads(PLAN.to_json())
    data.update(changes)
    return json.dumps(data)


def with_decision(**changes):
    data = json.loads(PLAN.to_json())
    data["decisions"][0].update(changes)
    return json.dumps(data)


def with_certificate(**changes):
    certificate = {"metric": "psnr", "asked": 30.0, "cases": ["a", "b"], "values": [31.0, 32.0]}
    return corrupted(certificate={**certificate, "toolchain": "test", "date": "2026-01-01", **changes})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it has no version"),
        ("[" * 900 + "]" * 900, "it has no version"),
        ('{"version": 4}', "the fields of a Plan are version, model, inputs"),
        (corrupted(extra=1), "the fields of a Plan are"),
        (corrupted(extra=1), "'extra' is none of them"),
        (corrupted().replace('"model"', '"target": "cpu", "model"'), "it repeats 'target'"),
        (corrupted(decisions=[{}]), "the fields of a Decision are"),
        (corrupted(decisions=[{}]), "'batch' is missing, at decisions[0]"),
        (corrupted(decisions=[None]), "'decisions[0]' is not an object"),
        (corrupted(decisions=[1] * 100_001), "'decisions' has 100001 items, more than 100000"),
        (corrupted(options=[]), "'options' is not an object"),
        (corrupted(decisions=7), "'decisions' is not a list"),
        (corrupted(other_seconds="fast"), "'other_seconds' is no float in range"),
        (corrupted(other_seconds=-0.5), "'other_seconds' is no float in range"),
        (corrupted().replace("0.01", "1e999"), "'other_seconds' is no float in range"),
        (corrupted().replace("0.01", "-Infinity"), "it holds -Infinity"),
        (corrupted(other_flops=True), "'other_flops' is no int in range"),
        (corrupted(other_flops=1.5), "'other_flops' is no int in range"),
        (corrupted(other_flops=10**40), "'other_flops' is no int in range"),
        (corrupted(model="x" * 70_000), "'model' is no str in range"),
        (corrupted(target="h1000"), "there is no target"),
        (corrupted().replace("0.01", "NaN"), "it holds NaN"),
        (with_decision(pattern="__import__('os')"), "cannot read"),
        (with_decision(pattern="crisscross{group=999x999}"), "does not fit"),
        (with_decision(layout="h:4 w:4"), "the layout has 16 tokens"),
        (with_decision(layout="unknown"), "a pattern needs one grid"),
        (with_decision(density=0.5), "density is"),
        (with_decision(site="a.1"), "two decisions are for one site"),
        (with_decision(queries=-1), "'queries' is no int in range, at decisions[0]"),
        (with_certificate(values=[30.0, "31"]), "'values[1]' is no float in range, at certificate"),
        (with_certificate(cases=["a", "b" * 70_000]), "'cases[1]' is no str in range, at certificate"),
        (with_certificate(cases=["a", "b", "c"]), "no value for each of its cases"),
        (with_decision(pattern=GATED, density=GATED_DENSITY), "nothing tells the noise level"),
        (with_decision(pattern=GATED), "density is"),
        (with_decision(pattern="crisscross{axes=lines,group=16x16}[heads=0-1]"), "heads 0-1 have a pattern, of"),
        (with_decision(pattern="crisscross{axes=lines,group=16x16}[noise=0.5:0.5]; dense"), "is no range"),
        (corrupted(noise="timestep/0"), "cannot read"),
    ],
)
def test_corrupt_and_hostile_files_are_refused(text, fault, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(BadPlanFile) as error:
        Plan.load(path)
    assert fault in str(error.value)
    assert str(path) in str(error.value)


@given(st.binary(max_size=200))
def test_random_bytes_never_do_anything_but_be_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlannerError):
        Plan.load(path)


def test_missing_and_huge_files_are_refused(tmp_path):
    with pytest.raises(BadPlanFile, match="No such file"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "huge.json").write_text(" " * (17 * 2**20))
    with pytest.raises(BadPlanFile, match="larger than 16 MiB"):
        Plan.load(tmp_path / "huge.json")


@pytest.mark.parametrize("version", [99, 0, -1, True, 3.0, "4", None])
def test_another_version_is_refused(version):
    with pytest.raises(PlanVersion, match=f"The file says version {version!r}; this planner reads versions 1 to 4"):
        Plan.from_json(corrupted(version=version))


def test_a_certificate_survives_json_with_values_of_either_sign():
    certificate = Certificate("ssim", 0.5, ("a", "b"), (-0.1, 0.9), "test", "2026-01-01")
    certified = replace(PLAN, certificate=certificate).verify()
    assert Plan.from_json(certified.to_json()) == certified


def test_numbers_that_json_has_no_word_for_are_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(PLAN, other_seconds=float("nan")).to_json()


def test_candidates_can_be_worked_out_again():
    ranked = candidates_of(PLAN.decisions[0], PLAN)
    assert str(ranked[0].pattern) == PLAN.decisions[0].pattern
    assert len(ranked) > 2
    assert candidates_of(PLAN.decisions[1], PLAN)[0].rejected is None


def test_totals():
    assert PLAN.attention_speedup > 1
    h100 = Target.named("h100")
    assert 1 < PLAN.bound < PLAN.attention_speedup < PLAN.bound * h100.sparse_attention / h100.dense_attention
    assert 1 < PLAN.step_speedup < PLAN.step_bound


def test_reach_follows_the_longest_layout():
    layout, cross = "text:512 | h:128 w:128", {"pattern": "crisscross"}
    assert plan([site(name="a"), site(name="b")], Options(**cross)).reach() == (layout, 2)
    assert plan([site(name="a"), site("h:64 w:64", name="b")], Options(**cross)).reach() == (layout, None)
    assert plan([site("text:9")]).reach() == ("", None)
