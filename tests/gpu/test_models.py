"""Models of diffusers on a CUDA device: the whole zoo, and weights that are brought in when they are needed."""

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from zoo import GROUPS, ZOO
from zoo.registry import distance, outputs
from zoo.table import plan_of

import planner
from planner.runtime.attention import dispatch
from planner.runtime.masked_dense import MaskedDense

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("no_grad"),
]


def on_device(name):
    model, inputs = ZOO[name].case(ZOO[name].sizes[0])
    return model.cuda(), pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, inputs)


ON_HOST = "AnyFlowFARTransformer3DModel"
"""Reads a block mask whose own functions index tensors of the host."""


@pytest.mark.parametrize("name", [name for name in ZOO if len(ZOO[name].sizes[0]) > 1 and name != ON_HOST])
def test_every_class_that_makes_pictures_or_videos(name):
    """Against masked dense attention, as far as the original on the device is from itself in double precision."""
    compiled, inputs = on_device(name)
    compiled = plan_of(compiled, ZOO[name].sizes[0])
    ours = outputs(compiled, inputs)
    (plan,) = planner.report(compiled).plans
    dense = outputs(*on_device(name))
    if not any(decision.is_sparse for decision in plan.decisions):
        assert distance(ours, dense) <= 1e-3 * distance(dense, [0 * x for x in dense])
        return
    model, inputs = on_device(name)
    with MaskedDense(plan):
        judged = outputs(model, inputs)
    assert distance(ours, judged) <= 0.05 * distance(judged, dense)


@pytest.mark.parametrize("how", ["model", "sequential", "group"])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_pipeline_whose_weights_are_elsewhere(name, how):
    """Offloading to the host paints what the same plan paints with all weights on the device."""
    pipelines = pytest.importorskip("zoo.pipelines")
    pictures = []
    for offload in (None, how):
        torch.manual_seed(0)
        dispatch.fallbacks.clear()
        pipe, inputs = pipelines.PIPELINES[name]()
        pipe.set_progress_bar_config(disable=True)
        group = GROUPS.get(name, "1x3x5")
        pipe.transformer = planner.compile(pipe.transformer, pattern="crisscross", group=group, min_speedup=0.0)
        if offload is None:
            pipe.to("cuda")
        elif offload == "model":
            pipe.enable_model_cpu_offload()
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload()
        else:
            pipe.enable_group_offload(onload_device=torch.device("cuda"), offload_type="leaf_level", use_stream=True)
        seed = torch.Generator().manual_seed(1)
        made = pipe(**inputs, num_inference_steps=3, generator=seed, output_type="np", return_dict=False)
        pictures.append(np.asarray(made[0]))
        report = planner.report(pipe.transformer)
        assert any(decision.is_sparse for decision in report.plans[0].decisions)
        assert report.intercepted == (offload is not None,)
        assert not report.fallbacks or name == "wan"  # whose heads of 12 channels no kernel takes
    np.testing.assert_allclose(*pictures, atol=2e-3)
