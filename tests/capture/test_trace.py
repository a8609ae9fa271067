import pytest
import torch
import torch.nn.functional as F
from examples import on_meta
from zoo import FAMILIES, flux, flux_inputs, qwen

from planner.capture.call import Call
from planner.capture.trace import Capture, capture_module, module_path
from planner.errors import CannotCapture
from planner.plan.options import Options
from planner.plan.target import Target
from planner.runtime.graph.rewrite import rewrite
from planner.stages import plan_capture


@pytest.mark.parametrize("name", FAMILIES)
def test_meta_and_real_models_give_the_same_sites(name):
    model, kwargs = FAMILIES[name]()
    real = capture_module(model, (), kwargs)
    meta = capture_module(*(lambda m, k: (m, (), k))(*on_meta(model, kwargs)))
    described = [[(module_path(node), node.meta["val"].shape) for node in c.attention_nodes()] for c in (real, meta)]
    assert described[0] == described[1] != []


def test_tracing_leaves_the_model_as_it_was():
    model, kwargs = qwen()
    model, meta_kwargs = on_meta(model, kwargs)
    before = {id(module): dict(vars(module)) for module in model.modules()}
    for _ in range(2):
        capture_module(model, (), meta_kwargs)
    for module in model.modules():
        assert {k: v for k, v in vars(module).items() if isinstance(v, torch.Tensor)} == {
            k: v for k, v in before[id(module)].items() if isinstance(v, torch.Tensor)
        }
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_the_captured_graph_computes_what_the_model_does():
    model, kwargs = flux()
    capture = capture_module(model, (), {**kwargs, "return_dict": False})
    with torch.no_grad():
        assert torch.allclose(capture.graph(*capture.inputs)[0], model(**kwargs)[0], atol=1e-6)


def test_a_signature_holds_shapes_dtypes_and_whole_numbers():
    model, kwargs = flux()
    signature = Call.of(model, (), kwargs).signature()
    assert signature.startswith("hidden_states=2x192x16 float32, encoder_hidden_states=2x8x32 float32")
    model, kwargs = FAMILIES["ltx"]()
    assert Call.of(model, (), kwargs).signature().endswith("num_frames=2, height=6, width=8")


def test_positional_arguments_get_their_names():
    model, kwargs = flux()
    assert Call.of(model, list(kwargs.values())[:1], {}).tensors[0][0] == "hidden_states"


class Branching(torch.nn.Module):
    def forward(self, x):
        x = F.scaled_dot_product_attention(x, x, x)
        return x if x.sum() > 0 else -x


def test_a_model_that_branches_on_its_values_cannot_be_captured():
    with pytest.raises(CannotCapture, match="cannot capture the graph of Branching"):
        capture_module(Branching(), (torch.randn(1, 1, 4, 4),), {})


def test_digests_of_other_values_differ():
    model, kwargs = flux()
    same, other = flux_inputs(12, 16), flux_inputs(16, 12)
    digests = [Call.of(model, (), k).digest("img_ids") for k in (kwargs, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_capture_knows_where_attention_runs_also_once_it_is_rewritten():
    model, kwargs = flux()
    kwargs |= {"return_dict": False}
    traced = capture_module(model, (), kwargs)
    for node in traced.attention_nodes():
        node.meta["val"] = torch.empty(node.meta["val"].shape, device="meta")
    capture, call = Capture.of(traced.graph, traced.inputs), Call.of(model, (), kwargs)
    planned = plan_capture(Options(group="3x5", min_speedup=0.0), Target.named("h100"), traced, call)
    assert rewrite(capture, planned, call) > 0
    assert not capture.attention_nodes()
    assert capture.device.type == "meta"
