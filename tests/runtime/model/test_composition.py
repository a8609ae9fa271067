"""A compiled model together with what else people do to one: adapters, offloading, caching, quantised layers."""

import copy
import sys

import accelerate
import diffusers
import peft
import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks import apply_group_offloading
from zoo import FORCE, flux, flux_inputs
from zoo.pictures import deep_flux

import planner
from planner.errors import NoGradient
from planner.runtime.masked_dense import MaskedDense

pytestmark = [pytest.mark.usefixtures("no_grad"), pytest.mark.filterwarnings("ignore")]

CPU = torch.device("cpu")
ADAPTED = ["to_q", "to_k", "to_v"]


def output(model, kwargs):
    return model(**kwargs, return_dict=False)[0]


def compiled_flux():
    model, kwargs = flux()
    return planner.compile(model, pattern="crisscross", group="3x5", **FORCE), model, kwargs


def judged(model, kwargs, compiled):
    """Masked dense attention, under the plan of the compiled model's last call."""
    with MaskedDense(planner.report(compiled).plans[-1]):
        return output(model, kwargs)


def assert_planned(compiled, model, kwargs):
    """Check that the compiled model equals the other one under its plan, and differs from the other one without."""
    ours = output(compiled, kwargs)
    torch.testing.assert_close(ours, judged(model, kwargs, compiled), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, output(model, kwargs), atol=1e-4)


def adapter(model, seed):
    """Make the state of a low-rank adapter with random weights."""
    torch.manual_seed(seed)
    adapted = copy.deepcopy(model)
    adapted.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=ADAPTED, init_lora_weights=False))
    state = peft.get_peft_model_state_dict(adapted)
    return {f"transformer.{name}": value for name, value in state.items()}


def with_adapter(model, state, name):
    adapted = copy.deepcopy(model)
    adapted.load_lora_adapter(dict(state), adapter_name=name)
    return adapted


def test_adapters_are_loaded_swapped_fused_and_unloaded():
    compiled, model, kwargs = compiled_flux()
    plain, first, second = copy.deepcopy(model), adapter(model, 1), adapter(model, 2)
    before = output(compiled, kwargs)
    compiled.load_lora_adapter(dict(first), adapter_name="style")
    assert_planned(compiled, with_adapter(plain, first, "style"), kwargs)
    assert not torch.allclose(output(compiled, kwargs), before, atol=1e-4)
    compiled.load_lora_adapter(dict(second), adapter_name="style", hotswap=True)
    assert_planned(compiled, with_adapter(plain, second, "style"), kwargs)
    swapped = output(compiled, kwargs)
    compiled.fuse_lora()
    torch.testing.assert_close(output(compiled, kwargs), swapped, rtol=1e-4, atol=1e-4)
    compiled.unfuse_lora()
    compiled.disable_adapters()
    torch.testing.assert_close(output(compiled, kwargs), before, rtol=1e-4, atol=1e-4)
    compiled.enable_adapters()
    compiled.unload_lora()
    assert_planned(compiled, plain, kwargs)
    torch.testing.assert_close(output(compiled, kwargs), before, rtol=1e-4, atol=1e-4)


def test_the_scale_of_an_adapter_is_kept():
    compiled, model, kwargs = compiled_flux()
    state = adapter(model, 1)
    plain = with_adapter(model, state, "style")
    compiled.load_lora_adapter(dict(state), adapter_name="style")
    for scale in (0.5, 2.0):
        assert_planned(compiled, plain, {**kwargs, "joint_attention_kwargs": {"scale": scale}})


OFFLOADED = {
    "sequential": lambda model: accelerate.cpu_offload(model, execution_device=CPU),
    "model": lambda model: accelerate.cpu_offload_with_hook(model, CPU),
    "leaves": lambda model: apply_group_offloading(model, CPU, CPU, offload_type="leaf_level"),
    "blocks": lambda model: apply_group_offloading(model, CPU, CPU, offload_type="block_level", num_blocks_per_group=1),
}


@pytest.mark.parametrize("is_before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("kind", OFFLOADED)
def test_weights_may_be_elsewhere_until_they_are_needed(kind, is_before):
    model, kwargs = flux()
    plain = copy.deepcopy(model)
    if is_before:
        OFFLOADED[kind](model)
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    if not is_before:
        output(compiled, kwargs)
        OFFLOADED[kind](compiled)
    assert_planned(compiled, plain, kwargs)
    assert planner.report(compiled).intercepted[-1]
    if kind == "sequential":
        assert {parameter.device.type for parameter in compiled.parameters()} == {"meta"}


def test_weights_may_be_kept_in_another_type():
    compiled, model, kwargs = compiled_flux()
    plain = copy.deepcopy(model)
    for each in (compiled, plain):
        each.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert_planned(compiled, plain, kwargs)


CACHES = {
    "first block": diffusers.FirstBlockCacheConfig(threshold=0.5),
    "pyramid": diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
}


@pytest.mark.parametrize("kind", CACHES)
def test_blocks_that_are_skipped_are_skipped(kind):
    """Three steps with a cache: what is computed is planned, what is kept is kept, as with masked dense attention."""
    torch.manual_seed(0)
    model = deep_flux(2, 2)
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    first = flux_inputs()
    cases = [{**first, "hidden_states": first["hidden_states"] + 0.02 * step} for step in range(3)]
    plain = [output(compiled, case) for case in cases]
    plan = planner.report(compiled).plans[0]
    compiled.enable_cache(CACHES[kind])
    with compiled.cache_context("conditional"):
        ours = [output(compiled, case) for case in cases]
    torch.manual_seed(0)
    judge = deep_flux(2, 2)
    judge.enable_cache(CACHES[kind])
    with judge.cache_context("conditional"):
        theirs = [output(planned_dense(judge, plan), case) for case in cases]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, plain, strict=True))
    compiled.disable_cache()
    torch.testing.assert_close(output(compiled, cases[0]), plain[0])


def planned_dense(model, plan):
    """Run a model as it is written, each attention masked as its module's decision says."""

    class ByModule(MaskedDense):
        def decision(self):
            frame = sys._getframe(1)
            while frame.f_code is not torch.nn.Module._call_impl.__code__ or id(frame.f_locals["self"]) not in paths:
                frame = frame.f_back
            return decisions[paths[id(frame.f_locals["self"])]]

    paths = {id(module): path for path, module in model.named_modules()}
    decisions = {decision.site: decision for decision in plan.decisions}

    def run(**kwargs):
        with ByModule(plan):
            return model(**kwargs)

    return run


class Int8Linear(torch.nn.Module):
    """A linear layer with weights of a byte, a scale for each row."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return F.linear(x, self.codes.to(x.dtype) * self.scale, self.bias)


def quantise(model):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, Int8Linear(child))


@pytest.mark.parametrize("is_before", [False, True], ids=["after", "before"])
def test_linear_layers_may_be_quantised(is_before):
    model, kwargs = flux()
    original = output(model, kwargs)
    if is_before:
        quantise(model)
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    if not is_before:
        output(compiled, kwargs)
        quantise(compiled)
    assert not torch.equal(output(model, kwargs), original)
    assert_planned(compiled, model, kwargs)


@pytest.mark.parametrize("is_before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_the_backend_of_attention_may_be_named(name, is_before):
    model, kwargs = flux()
    if is_before:
        model.set_attention_backend(name)
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    if not is_before:
        output(compiled, kwargs)
        compiled.set_attention_backend(name)
    assert_planned(compiled, model, kwargs)


@pytest.fixture
def native():
    """diffusers keeps the backend named last for all models."""
    yield
    flux()[0].set_attention_backend("native")


@pytest.mark.usefixtures("native")
def test_attention_of_another_backend_stays_as_it_is_and_is_named():
    model, kwargs = flux()
    model.set_attention_backend("flex")
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    torch.testing.assert_close(output(compiled, kwargs), output(model, kwargs), rtol=1e-5, atol=1e-5)
    assert "dense transformer_blocks.0.attn: its graph holds a vmap" in str(planner.report(compiled))


def test_other_parts_may_be_compiled():
    compiled, model, kwargs = compiled_flux()
    compiled.time_text_embed.compile(backend="eager")
    compiled.transformer_blocks[0].ff.compile(backend="eager")
    assert_planned(compiled, model, kwargs)


def test_a_gradient_of_an_intercepted_model_is_refused():
    model, kwargs = flux()
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    OFFLOADED["model"](compiled)
    with torch.enable_grad(), pytest.raises(NoGradient):
        output(compiled, kwargs).sum().backward()
    assert planner.report(compiled).intercepted == (True,)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_in_either_way(mode):
    compiled, model, kwargs = compiled_flux()
    with mode():
        ours = output(compiled, kwargs)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, judged(model, kwargs, compiled), rtol=1e-5, atol=1e-5)
