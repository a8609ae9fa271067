import itertools
import json

import pytest
import torch
from kernel_specs import FLUX, problem

from planner.codegen.spec.candidates import candidates, choose_config
from planner.codegen.spec.config import KernelConfig
from planner.runtime.kernels import autotune as tuned
from planner.runtime.kernels.cache import toolchain

ASKED = problem(FLUX, "neighborhood{radius=1,edge=clamp,group=8x8}")
FOUND = KernelConfig("triton", 64, 32, 4, 3)


@pytest.fixture
def remembered(monkeypatch, tmp_path):
    """Write what tuning would have left."""
    monkeypatch.setenv("PLANNER_CACHE_DIR", str(tmp_path))

    def write(text):
        (tmp_path / tuned.FILE).write_text(text)
        tuned._read.cache_clear()

    tuned._read.cache_clear()
    yield write
    tuned._read.cache_clear()


def entry(**changes):
    return json.dumps({ASKED.digest: {"config": str(FOUND), "code": toolchain()["code"], **changes}})


def test_what_tuning_found_is_used(remembered):
    assert tuned.configured(ASKED).config == choose_config(ASKED)
    remembered(entry())
    assert tuned.configured(ASKED).config == FOUND
    assert tuned.configured(problem(FLUX, "neighborhood{group=16x16}")).config.body == "sm90"


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[]",
        json.dumps({ASKED.digest: "a word"}),
        entry(code="other code"),
        entry(config="sm99{}"),
        entry(config="triton{m=64,n=48,warps=4,stages=3}"),
        entry(config="sm90{m=128,n=128,warps=4,stages=4}"),
    ],
)
def test_what_cannot_be_used_is_not(remembered, text):
    remembered(text)
    assert tuned.configured(ASKED).config == choose_config(ASKED)


def test_tuning_times_candidates_and_remembers_the_fastest(remembered, monkeypatch):
    times = itertools.count(10_000, -1)
    monkeypatch.setattr(tuned, "_launch", lambda spec, device: lambda: None)
    monkeypatch.setattr(tuned, "device_seconds", lambda run: next(times) / 1e3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a device")
    trials = tuned.tune(ASKED, torch.device("cuda"), 60.0)
    assert [trial.milliseconds for trial in trials] == sorted(trial.milliseconds for trial in trials)
    assert {trial.config for trial in trials} == set(candidates(ASKED))
    assert tuned.configured(ASKED).config == trials[0].config
