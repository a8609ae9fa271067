from dataclasses import replace

import pytest
import torch

from planner.plan.target import TARGETS, Target


@pytest.fixture
def gb10(monkeypatch):
    """Add a target as a plug-in does, on a machine with such a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 GB10")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 1))
    monkeypatch.setattr(TARGETS, "_entries", dict(TARGETS))
    return TARGETS.register("h100gb10")(replace(TARGETS["h100"], name="h100gb10"))


def test_every_target_has_its_own_name():
    assert all(target.name == name for name, target in TARGETS.items())


def test_a_registered_target_is_found_by_its_name(gb10):
    assert Target.named("h100gb10") is gb10
    assert "h100gb10" in list(TARGETS)


@pytest.mark.parametrize("triton", [True, False])
def test_a_gpu_is_the_target_with_the_longest_name_in_its_own(gb10, monkeypatch, triton):
    """Without Triton too, where such a target has no variant for torch's own kernels."""
    monkeypatch.setattr("planner.plan.target.find_spec", lambda name: triton or None)
    assert Target.of_device(torch.device("cuda")) is gb10
