"""What the benchmarks of kernels rest on, as far as it can be seen without a GPU."""

import re
from collections import Counter

import pytest
from kernel_specs import SPECS

from bench import kernel_trace, kernels
from planner.codegen.emit.bodies import emit
from planner.runtime.kernels.compile import compile_emitted

WAITS_AND_STARTS = f"{kernel_trace._WAITS}|{kernel_trace._STARTS}".replace("\\", "").replace("mbarrier.", "").split("|")


@pytest.fixture(scope="module")
def marked():
    """Mark a kernel that merges rows of text, and one of pairs of groups: together they have all marks."""
    return [kernel_trace.marked(emit(SPECS[name])) for name in ("hopper_flux_grat_b", "hopper_pairs")]


def test_marked_kernels_compile(marked):
    for emitted, _ in marked:
        assert compile_emitted(emitted).code


def test_all_that_a_timeline_is_to_show_is_there(marked):
    """The template's functions have the names by which they are found."""
    shown = {name[2:].split()[0] for _, names in marked for name in names[1:]}
    assert shown == set(WAITS_AND_STARTS)
    for emitted, names in marked:
        functions = re.split(r"\ndef ", emitted.source)
        leaving = [text.split("(")[0] for text in functions if "marks_left = gl.to_tensor(0)" in text]
        assert leaving == ["scheduler_warp", "load_warp", "consumer"]
        assert len(set(names)) == len(names)


def test_events_of_a_timeline():
    marks = [(1, 2**32 - 10), (2, 5), (3, 7)]
    signs = {kernel_trace.BEGUN: "wait found", kernel_trace.DONE: "wait found", kernel_trace.STARTED: "multiply s"}
    names = ["", *(sign + name for sign, name in signs.items())]
    found = list(kernel_trace.events(marks, names, 2**32 - 20))
    assert found == [("wait found", 10, 15), ("multiply s", 27, 0)]


def test_what_hot_and_cool_are(monkeypatch):
    """Half a second of a run, after as much of it; after a rest ten launches, of short ones three more."""
    milliseconds = {"short": 0.125, "long": 100.0, "slow": 1400.0}
    launched, timed = Counter(), []

    def take(run, times):
        for _ in range(times):
            run()
        timed.append((run.name, times))
        return run.milliseconds / 1e3

    def named(name):
        def run():
            launched[name] += 1

        run.name, run.milliseconds = name, milliseconds[name]
        return run

    monkeypatch.setattr(kernels, "device_seconds", take)
    monkeypatch.setattr(kernels.time, "sleep", lambda seconds: timed.append(("rest", seconds)))
    monkeypatch.setattr(kernels.torch.cuda, "synchronize", lambda: None)
    case = kernels.cases("flux1024-8x8-B")[0]
    row = kernels.measure(case, {name: named(name) for name in milliseconds}, 3, milliseconds, cool_rounds=2)
    first = timed.index(("rest", 0.4))
    assert Counter(timed[6:first]) == {("short", 4000): 6, ("long", 5): 6, ("slow", 1): 2}
    assert Counter(timed[first:]) == {("rest", 0.4): 4, ("short", 10): 2, ("long", 1): 2}
    assert launched["short"] == 2 + 6 * 4000 + 2 * (3 + 10)
    assert row["short TFLOP/s"] == pytest.approx(case.flops() / 0.125e9)
    assert "slow TFLOP/s" in row
    assert "slow cool TFLOP/s" not in row
