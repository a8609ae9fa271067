import pytest
import torch

from planner.api import make_plan
from planner.models.catalogue import build
from planner.models.inputs import example_inputs
from planner.patterns.layout import TokenLayout
from planner.runtime.evidence.locality import RecordLocality, site_locality

LAYOUT = TokenLayout.parse("text:3 | h:6 w:8")


def brute_force(query, key, layout):
    """Mass by distance, pair by pair."""
    mass = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1).mean(0)
    h, w = layout.grid.sizes
    by_distance = torch.zeros(query.shape[1], max(h, w))
    for q in range(h * w):
        for k in range(h * w):
            distance = max(abs(q // w - k // w), abs(q % w - k % w))
            by_distance[:, distance] += mass[:, layout.grid_start + q, layout.grid_start + k] / (h * w)
    return by_distance


def test_mass_by_distance_is_that_of_the_pairs():
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 51, 16), torch.randn(2, 3, 51, 16)
    locality = site_locality("attn", query, key, LAYOUT, ())
    assert torch.allclose(locality.by_distance, brute_force(query, key, LAYOUT), atol=1e-5)


def test_even_attention_is_uniform():
    query, key = torch.zeros(1, 2, 51, 16), torch.randn(1, 1, 51, 16)
    locality = site_locality("attn", query, key, LAYOUT, ())
    assert torch.allclose(locality.by_distance, locality.uniform.expand(2, -1) * 48 / 51, atol=1e-6)
    assert float(locality.uniform.sum()) == pytest.approx(1)


def test_recall_is_the_mass_under_the_mask():
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 51, 16), torch.randn(1, 2, 51, 16)
    spelling = "crisscross{axes=lines,group=2x2}"
    locality = site_locality("attn", query, key, LAYOUT, (spelling, "neighborhood{radius=9,edge=clamp,group=2x2}"))
    everything = locality.recall["neighborhood{radius=9,edge=clamp,group=2x2}"]
    assert torch.allclose(everything, torch.ones(2))
    kept = locality.recall[spelling]
    assert (kept < 1).all()
    assert (kept > 3 / 51).all()


@pytest.mark.parametrize("rows", [1, 51])
@pytest.mark.parametrize("additive", [False, True])
def test_masked_keys_have_no_mass(rows, additive):
    query, key = torch.zeros(1, 1, 51, 16), torch.zeros(1, 1, 51, 16)
    mask = torch.ones(1, 1, rows, 51, dtype=torch.bool)
    mask[..., :3] = False
    if additive:
        mask = torch.where(mask, 0.0, float("-inf"))
    locality = site_locality("attn", query, key, LAYOUT, (), attn_mask=mask)
    assert float(locality.by_distance.sum()) == pytest.approx(1)


def test_every_site_of_a_model_is_recorded_and_results_do_not_change():
    config = {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": 12,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": [4, 6, 6],
    }
    torch.manual_seed(0)
    model = build(config, device="cpu")
    inputs = example_inputs(config, (128, 96), device="cpu", dtype=torch.float32)
    plan = make_plan(model, kwargs=inputs, pattern="dense")
    with torch.inference_mode():
        expected = model(**inputs)[0]
        with RecordLocality(plan, ("crisscross{axes=lines,group=2x2}",)) as mode:
            for _ in range(2):
                assert torch.equal(model(**inputs)[0], expected)
    assert [locality.site for locality in mode.records] == [decision.site for decision in plan.decisions] * 2
    assert len(mode.records) == 6
    for locality in mode.records:
        assert (locality.by_distance.sum(1) < 1).all()
        assert locality.recall["crisscross{axes=lines,group=2x2}"].shape == (2,)
