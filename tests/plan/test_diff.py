from examples import site

from planner.plan.diff import difference
from planner.plan.options import Options
from planner.plan.plan import Plan
from planner.plan.target import Target
from planner.search.decide import decide


def plan(sites, options):
    decisions = decide(sites, options, Target.named("h100"))
    return Plan("Model", "x=1x2", "h100", options, decisions, None, 10**12, 0.01).verify()


def test_difference_names_every_field():
    first = plan([site(name="a.0"), site("text:256", name="a.1"), site("t:9 h:30 w:30", name="b")], Options())
    second = plan(
        [site(name="a.0"), site("text:256", name="a.1"), site("t:9 h:30 w:32", name="c")], Options(group="8x8")
    )
    changes = difference(first, second)
    assert ("a.0", "pattern") in [(c.where, c.field) for c in changes]
    assert ("options", "group", None, "8x8") in [(c.where, c.field, c.a, c.b) for c in changes]
    assert ("b", "site", "present", "absent") in [(c.where, c.field, c.a, c.b) for c in changes]
    assert ("c", "site", "absent", "present") in [(c.where, c.field, c.a, c.b) for c in changes]
    assert difference(first, first) == []
