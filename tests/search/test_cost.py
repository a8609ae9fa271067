import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from examples import site

from planner.capture.trace import capture_module
from planner.errors import UnknownName
from planner.patterns.crisscross import CrissCross
from planner.patterns.density import attended_pairs
from planner.patterns.neighborhood import Neighborhood
from planner.plan.target import SDPA, TARGETS, Target
from planner.search.cost import attention_flops, dense_seconds, rest_of_step, sparse_seconds

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def measured(name):
    """Rows of committed results."""
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def test_flops_of_attention():
    assert attention_flops(site("h:10 w:10", heads=2, head_dim=8), 100 * 100) == 4 * 2 * 8 * 100 * 100


def test_dense_time_is_near_what_cudnn_reaches_on_an_h100():
    """FLUX at 4096²: cuDNN was measured at 645 to 648 TFLOP/s (planner/plan/target.py)."""
    flux = site("text:512 | h:256 w:256")
    rate = attention_flops(flux, flux.queries**2) / dense_seconds(flux, Target.named("h100"))
    assert math.isclose(rate, 643e12, rel_tol=0.02)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_sparse_wins_where_there_is_much_to_leave_out(name):
    target, large = Target.named(name), site("text:512 | h:512 w:512")
    factor = 2 if name.endswith(SDPA) else 5
    assert sparse_seconds(large, CrissCross((16, 16)), target) < dense_seconds(large, target) / factor


def test_torchs_own_kernels_lose_where_little_is_left_out():
    """Measured on an H100: FLUX at 1024² with GRAT-X runs at 0.76 of dense, at 4096² at 1.17."""
    target = Target.named("h100" + SDPA)
    for side, wins in ((64, False), (256, True)):
        flux = site(f"text:512 | h:{side} w:{side}")
        assert (sparse_seconds(flux, CrissCross((16, 16)), target) < dense_seconds(flux, target)) == wins


def test_small_groups_waste_tiles():
    h100, large = Target.named("h100"), site("h:512 w:512")
    wasteful, whole = (sparse_seconds(large, CrissCross(g), h100) for g in ((9, 9), (8, 8)))
    assert wasteful > 2 * whole


def test_groups_of_64_are_faster_where_they_make_pairs():
    def rate(text, edge="clamp", offset=(), target="h100"):
        asked, pattern = site(text), Neighborhood((8, 8), (3, 3), edge, offset=offset)
        return attended_pairs(pattern, asked.layout) / sparse_seconds(asked, pattern, Target.named(target))

    even, odd = "h:520 w:512", "h:520 w:520"
    assert rate(even) == pytest.approx(rate(odd) * 0.9 / 0.55, rel=0.01)
    assert [rate(even, "clip"), rate(even, offset=(4, 4))] == pytest.approx([rate(odd)] * 2, rel=0.01)
    assert rate(even, target="a100") == pytest.approx(rate(odd, target="a100"), rel=0.01)


@pytest.mark.parametrize(
    ("pattern", "results", "case"),
    [
        (CrissCross((16, 16)), "kernels", "flux4096-16x16-X"),
        (CrissCross((8, 8)), "kernels_pairs", "flux4096-8x8-X"),
        (Neighborhood((16, 16), (1, 1)), "kernels", "flux4096-16x16-B"),
        (Neighborhood((8, 8), (1, 1)), "kernels_pairs", "flux4096-8x8-B"),
    ],
)
def test_predicted_times_are_near_what_emitted_kernels_take_on_an_h100(pattern, results, case):
    (taken,) = (row["ours ms"] for row in measured(results) if row["case"] == case)
    flux = site("text:512 | h:256 w:256")
    assert math.isclose(sparse_seconds(flux, pattern, Target.named("h100")) * 1e3, taken, rel_tol=0.25)


@pytest.mark.parametrize("side", [64, 128, 256])
@pytest.mark.parametrize("near", [CrissCross((16, 16)), Neighborhood((16, 16), (1, 1), "clamp")], ids=["X", "B"])
def test_means_of_far_groups_cost_what_they_took_on_an_h100(side, near):
    """bench/results/rules.json: the time with means, less the time without."""
    rows = [row for row in measured("rules") if row["layout"] == f"FLUX {16 * side}²"]
    taken = {row["rules"]: row["milliseconds"] for row in rows}
    name = "GRAT-X" if isinstance(near, CrissCross) else "GRAT-B"
    flux, target = site(f"text:512 | h:{side} w:{side}"), Target.named("h100")
    extra = sparse_seconds(flux, dataclasses.replace(near, pooled=True), target) - sparse_seconds(flux, near, target)
    assert math.isclose(1e3 * extra, taken[f"{name} with means"] - taken[name], rel_tol=0.3)


def test_linear_layers_are_counted():
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    graph = capture_module(model, (torch.randn(4, 16),), {}).graph.graph
    flops, seconds = rest_of_step(graph.nodes, Target.named("h100"))
    assert flops == 2 * 4 * (16 * 32 + 32 * 8)
    assert seconds > 0


def test_convolutions_are_counted():
    graph = capture_module(torch.nn.Conv2d(3, 5, 2, stride=2), (torch.randn(1, 3, 8, 8),), {}).graph.graph
    assert rest_of_step(graph.nodes, Target.named("cpu"))[0] == 2 * 5 * 16 * 12


def test_unknown_targets_suggest_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'h100'"):
        Target.named("h1000")


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), "h100"),
        ("NVIDIA GH200 480GB", (9, 0), "h200"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "a100"),
        ("NVIDIA GeForce RTX 4090", (8, 9), "rtx4090"),
        ("NVIDIA L40S", (8, 9), "rtx4090"),
        ("NVIDIA B300", (10, 3), "b200"),
        ("NVIDIA RTX PRO 6000", (12, 0), "rtx5090"),
    ],
)
def test_a_gpu_is_the_nearest_target(name, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert Target.of_device(torch.device("cuda")).name == expected


def test_without_triton_a_gpu_runs_through_sdpa(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("planner.plan.target.find_spec", lambda name: None)
    assert Target.of_device(torch.device("cuda")).name == "h100-sdpa"


def test_any_other_device_is_a_cpu():
    assert Target.of_device(torch.device("cpu")).name == "cpu"
