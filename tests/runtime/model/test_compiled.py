import copy
import gc
import io
import pickle
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from zoo import CROSS, EXPECTED, FAMILIES, FORCE, GROUPS, flux, flux_inputs, mochi
from zoo.table import covering

import planner
from planner.errors import (
    BadOption,
    CannotCapture,
    GroupTooLarge,
    NoGradient,
    NotAModule,
    NotCompiled,
    NotPicklable,
    OutOfMemory,
    PatternCoversAll,
    PlanMismatch,
    UnknownName,
)
from planner.runtime.masked_dense import MaskedDense

pytestmark = pytest.mark.usefixtures("no_grad")


def output(model, kwargs):
    return model(**kwargs, return_dict=False)[0]


@pytest.mark.parametrize("pattern", ["crisscross", "neighborhood{edge=clip,radius=0}"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sparse_plan_equals_masked_dense_attention(name, pattern):
    model, kwargs = FAMILIES[name]()
    compiled = planner.compile(model, pattern=pattern, group=GROUPS.get(name, "1x3x5"), **FORCE)
    ours = output(compiled, kwargs)
    (plan,) = planner.report(compiled).plans
    assert {d.site for d in plan.decisions if d.is_sparse} == {
        site for site, layout in EXPECTED[name].items() if layout not in (CROSS, "no grid", "hidden_states[t:3]")
    }
    assert all(d.density < 1 for d in plan.decisions if d.is_sparse)
    with MaskedDense(plan):
        judged = output(model, kwargs)
    torch.testing.assert_close(ours, judged, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, output(model, kwargs), atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "hunyuanvideo", "wan", "cogvideox"])
def test_alternate_offsets_equal_masked_dense_attention(name):
    model, kwargs = FAMILIES[name]()
    compiled = planner.compile(
        model, pattern="crisscross", group=GROUPS.get(name, "1x3x5"), alternate_offsets=True, **FORCE
    )
    ours = output(compiled, kwargs)
    (plan,) = planner.report(compiled).plans
    shifted = ["offset" in decision.pattern for decision in plan.decisions if decision.is_sparse]
    assert shifted == [index % 2 == 1 for index in range(len(shifted))]
    with MaskedDense(plan):
        torch.testing.assert_close(ours, output(model, kwargs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plan_that_covers_everything_equals_the_original(name):
    model, kwargs = FAMILIES[name]()
    compiled = covering(model)
    torch.testing.assert_close(output(compiled, kwargs), output(model, kwargs), rtol=1e-5, atol=1e-5)
    (plan,) = planner.report(compiled).plans
    assert {d.density for d in plan.decisions if d.is_sparse} == {1.0}


def test_a_pattern_that_reads_everything_is_dense_and_says_so():
    model, kwargs = flux()
    compiled = planner.compile(model, pattern="crisscross", group="12x5", **FORCE)
    compiled(**kwargs)
    (plan,) = planner.report(compiled).plans
    assert {decision.reason.partition(" (")[0] for decision in plan.decisions} == {
        "covers all: it reads the whole grid"
    }


@pytest.mark.parametrize("name", ["flux", "hunyuanvideo", "wan"])
def test_in_bf16_no_further_off_than_masked_dense(name):
    model, kwargs = FAMILIES[name]()
    exact_kwargs = {k: v.bfloat16().float() if is_float(v) else v for k, v in kwargs.items()}
    compiled = planner.compile(model, group=GROUPS.get(name, "1x3x5"), **FORCE)
    output(compiled, exact_kwargs)
    (plan,) = planner.report(compiled).plans
    low = copy.deepcopy(model).bfloat16()
    low_kwargs = {k: v.bfloat16() if is_float(v) and "ids" not in k else v for k, v in kwargs.items()}
    with MaskedDense(plan):
        truth = output(low.float(), exact_kwargs)
    low = low.bfloat16()
    with MaskedDense(plan):
        budget = (output(low, low_kwargs).float() - truth).norm()
    compiled = planner.compile(low, group=GROUPS.get(name, "1x3x5"), **FORCE)
    assert (output(compiled, low_kwargs).float() - truth).norm() <= 1.5 * budget


def is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def test_new_shapes_are_planned_once_and_remembered():
    model, _ = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    cases = [{}, {"h": 14}, {"text": 5}, {"batch": 1}]
    for _ in range(3):
        for case in cases:
            kwargs = flux_inputs(**case)
            ours = output(compiled, kwargs)
            plan = next(
                p for p in planner.report(compiled).plans if f"x{kwargs['hidden_states'].shape[1]}x16" in p.inputs
            )
            assert ours.shape == kwargs["hidden_states"].shape
            assert plan.decisions[0].queries == kwargs["img_ids"].shape[0] + plan_text(plan)
    report = planner.report(compiled)
    assert report.calls == (3, 3, 3, 3)
    layouts = [plan.decisions[0].layout for plan in report.plans]
    assert layouts == [
        "encoder_hidden_states:8 | hidden_states[h:12 w:16]",
        "encoder_hidden_states:8 | hidden_states[h:14 w:16]",
        "encoder_hidden_states:5 | hidden_states[h:12 w:16]",
        "encoder_hidden_states:8 | hidden_states[h:12 w:16]",
    ]


def plan_text(plan):
    return int(plan.decisions[0].layout.split(" | ")[0].split(":")[1])


def test_another_grid_with_as_many_tokens_is_another_plan():
    """Same shapes, other position ids: only their values tell 12x16 from 16x12."""
    model, _ = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    wide, tall = flux_inputs(12, 16), flux_inputs(16, 12)
    for kwargs in (wide, tall, wide, tall):
        ours = output(compiled, kwargs)
        (plan,) = [
            p
            for p in planner.report(compiled).plans
            if f"h:{'12' if kwargs is wide else '16'}" in p.decisions[0].layout
        ]
        with MaskedDense(plan):
            torch.testing.assert_close(ours, output(model, kwargs), rtol=1e-5, atol=1e-5)
    assert planner.report(compiled).calls == (2, 2)
    wide["img_ids"].copy_(tall["img_ids"])
    output(compiled, wide)
    assert planner.report(compiled).calls == (2, 3)


def test_ids_that_tell_no_grid_are_looked_at_again():
    model, kwargs = flux()
    compiled = planner.compile(model, **FORCE)
    output(compiled, kwargs | {"img_ids": torch.zeros(192, 3)})
    output(compiled, kwargs)
    unknown, known = planner.report(compiled).plans
    assert unknown.decisions[0].reason.startswith("no grid in encoder_hidden_states:8 | hidden_states:192")
    assert known.decisions[0].layout == "encoder_hidden_states:8 | hidden_states[h:12 w:16]"


def test_inputs_made_in_inference_mode_are_told_apart_too():
    model, _ = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    with torch.inference_mode():
        wide, tall = flux_inputs(12, 16), flux_inputs(16, 12)
        for kwargs in (wide, wide, tall):
            output(compiled, kwargs)
        wide["img_ids"].copy_(tall["img_ids"])
        output(compiled, wide)
    assert planner.report(compiled).calls == (2, 2)


def test_new_prompts_and_timesteps_compile_nothing():
    model, _ = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    output(compiled, flux_inputs())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            output(compiled, flux_inputs())
    assert planner.report(compiled).calls == (4,)


def test_the_compiled_model_answers_as_the_original():
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    assert isinstance(compiled, type(model))
    assert compiled.config == model.config
    assert compiled.dtype == model.dtype
    assert compiled.device == model.device
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert compiled.to(torch.float64) is compiled
    assert compiled.dtype == torch.float64
    compiled.to(torch.float32)

    before = output(compiled, kwargs)
    compiled.load_state_dict({name: weight * 0.5 for name, weight in model.state_dict().items()})
    assert not torch.allclose(output(compiled, kwargs), before)
    assert len(planner.report(compiled).plans) == 1

    calls = []
    hook = compiled.register_forward_hook(lambda *args: calls.append(1))
    output(compiled, kwargs)
    hook.remove()
    assert calls == [1]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_forward_works_with_gradients_on_and_backward_says_that_there_is_none(backend):
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", backend=backend, **FORCE)
    without = output(compiled, kwargs)
    with torch.enable_grad():
        ours = output(compiled, kwargs)
        torch.testing.assert_close(ours, without)
        with pytest.raises(NoGradient, match=r"Run under torch\.no_grad"):
            ours.sum().backward()


def test_outputs_have_the_originals_type():
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    assert type(compiled(**kwargs)) is type(model(**kwargs))
    first, *rest = kwargs.values()
    assert torch.equal(compiled(first, **dict(zip(list(kwargs)[1:], rest, strict=True)))[0], compiled(**kwargs)[0])


def test_the_original_stays_dense_and_a_copy_of_the_compiled_model_is_compiled():
    model, kwargs = flux()
    before = output(model, kwargs)
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    planned = output(compiled, kwargs)
    assert torch.equal(output(model, kwargs), before)
    assert not torch.allclose(planned, before)
    twin = copy.deepcopy(compiled)
    with torch.no_grad():
        twin.proj_out.weight.zero_()
    assert torch.equal(output(compiled, kwargs), planned)
    assert not output(twin, kwargs).sub(twin.proj_out.bias).any()
    assert planner.report(twin).calls == (1,)
    assert planner.report(twin).plans[0].decisions == planner.report(compiled).plans[0].decisions


def test_a_compiled_model_is_not_pickled_and_saves_as_the_original_does(tmp_path):
    model, kwargs = flux()
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    for write in (pickle.dumps, lambda model: torch.save(model, io.BytesIO())):
        with pytest.raises(NotPicklable, match=r"plan\.save"):
            write(compiled)
    compiled.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path), kwargs), output(model, kwargs))


@pytest.mark.parametrize("make", [lambda m: torch.compile(m, backend="eager"), lambda m: planner.compile(m, **FORCE)])
def test_what_is_already_compiled_is_planned_anew(make):
    model, kwargs = flux()
    twice = planner.compile(make(model), pattern="crisscross", group="3x5", **FORCE)
    once = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    assert torch.equal(output(twice, kwargs), output(once, kwargs))
    assert planner.report(twice).plans[0].decisions[0].pattern == "crisscross{axes=lines,group=3x5}"


def test_threads_may_share_a_compiled_model():
    model, _ = flux()
    cases = [flux_inputs(12, 16), flux_inputs(10, 14), flux_inputs(12, 16)]
    compiled = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    with ThreadPoolExecutor(3) as pool:
        rounds = list(pool.map(lambda n: output(compiled, cases[n % 3]), range(9)))
    alone = planner.compile(model, pattern="crisscross", group="3x5", **FORCE)
    for n, ours in enumerate(rounds):
        assert torch.equal(ours, output(alone, cases[n % 3]))
    assert sorted(planner.report(compiled).calls) == [3, 6]


def test_a_compiled_model_is_let_go():
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    output(compiled, kwargs)
    gone = weakref.ref(compiled)
    del compiled
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


def test_save_pretrained_saves_the_original(tmp_path):
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    compiled.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(output(again, kwargs), output(model, kwargs))


def test_a_given_plan_is_followed_and_no_other_inputs_are_taken():
    model, kwargs = flux()
    plan = planner.make_plan(
        model, kwargs={**kwargs, "return_dict": False}, pattern="neighborhood", group="3x5", **FORCE
    )
    plan = planner.Plan.from_json(plan.to_json())
    compiled = planner.compile(model, plan=plan)
    ours = output(compiled, kwargs)
    with MaskedDense(plan):
        torch.testing.assert_close(ours, output(model, kwargs), rtol=1e-5, atol=1e-5)
    with pytest.raises(PlanMismatch, match="It was made for inputs hidden_states=2x192x16"):
        output(compiled, flux_inputs(14, 16))
    with pytest.raises(PlanMismatch, match=r"h:12 w:16.*h:16 w:12"):
        output(compiled, flux_inputs(16, 12))


def test_a_plan_of_another_model_is_refused():
    model, kwargs = flux()
    plan = planner.make_plan(model, kwargs=kwargs, **FORCE)
    other, other_kwargs = FAMILIES["sd3"]()
    with pytest.raises(PlanMismatch, match="a FluxTransformer2DModel; this is a SD3Transformer2DModel"):
        output(planner.compile(other, plan=plan), other_kwargs)


class Broken(torch.nn.Module):
    """A graph break between the patch embedding and the attention."""

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        torch._dynamo.graph_break()
        tokens = tokens * 2
        torch._dynamo.graph_break()
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_layouts_are_carried_across_graph_breaks():
    x = torch.randn(1, 8, 6, 10)
    compiled = planner.compile(Broken(), group="2x3", **FORCE)
    ours = compiled(x)
    (plan,) = planner.report(compiled).plans
    assert [d.layout for d in plan.decisions] == ["x[h:6 w:10]"]
    with MaskedDense(plan):
        torch.testing.assert_close(ours, Broken()(x), rtol=1e-5, atol=1e-5)


def test_a_graph_break_is_an_error_where_one_graph_is_asked_for():
    with pytest.raises(CannotCapture, match="fullgraph=True, and "):
        planner.compile(Broken(), group="2x3", fullgraph=True, **FORCE)(torch.randn(1, 8, 6, 10))


class Adapted(torch.nn.Module):
    """A linear layer with a low-rank adapter beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def replace_a_block(model):
    model.transformer_blocks[0] = flux()[0].transformer_blocks[0]


def remove_a_block(model):
    del model.single_transformer_blocks[0]


def add_a_block(model):
    model.single_transformer_blocks.append(flux()[0].single_transformer_blocks[0])


def add_an_adapter(model):
    model.transformer_blocks[0].attn.to_q = Adapted(model.transformer_blocks[0].attn.to_q)


def replace_a_weight(model):
    model.single_transformer_blocks[0].attn.to_k.weight = torch.nn.Parameter(torch.randn(64, 64))


def scale_a_weight_in_place(model):
    model.single_transformer_blocks[0].attn.to_k.weight.mul_(2)


CHANGES = [replace_a_block, remove_a_block, add_a_block, add_an_adapter, replace_a_weight, scale_a_weight_in_place]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_runs_as_it_is_now(change, backend):
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", backend=backend, **FORCE)
    before = output(compiled, kwargs)
    change(model)
    ours = output(compiled, kwargs)
    (plan,) = planner.report(compiled).plans
    with MaskedDense(plan):
        torch.testing.assert_close(ours, output(model, kwargs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, before, atol=1e-5)
    assert len(plan.decisions) == len(model.transformer_blocks) + len(model.single_transformer_blocks)


def test_a_changed_model_does_not_follow_an_old_plan():
    model, kwargs = flux()
    plan = planner.make_plan(model, kwargs={**kwargs, "return_dict": False}, group="3x5", **FORCE)
    compiled = planner.compile(model, plan=plan)
    output(compiled, kwargs)
    add_a_block(model)
    with pytest.raises(PlanMismatch, match=r"no site at single_transformer_blocks\.1\.attn"):
        output(compiled, kwargs)


@pytest.mark.parametrize(
    "fault", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_names_the_largest_site(monkeypatch, fault):
    def fail(*args, **kwargs):
        raise fault

    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", **FORCE)
    monkeypatch.setattr("planner.runtime.attention.operator.attend", fail)
    with pytest.raises(OutOfMemory, match=r"(?s)transformer_blocks\.0\.attn, is .*h:12 w:16.*smaller picture"):
        output(compiled, kwargs)
    monkeypatch.undo()
    output(compiled, kwargs)
    assert planner.report(compiled).calls == (1,)


def test_running_out_of_memory_while_planning_names_the_inputs(monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model, kwargs = flux()
    monkeypatch.setattr("planner.stages.trace_provenance", fail)
    with pytest.raises(OutOfMemory, match="inputs hidden_states=2x192x16 float32"):
        output(planner.compile(model, group="3x5", **FORCE), kwargs)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_dynamo_cannot_capture_whole_is_intercepted():
    model, kwargs = mochi()
    compiled = planner.compile(model, group="1x3x5", **FORCE)
    ours = output(compiled, kwargs)
    (plan,) = planner.report(compiled).plans
    assert sum(decision.is_sparse for decision in plan.decisions) == 4
    with MaskedDense(plan):
        torch.testing.assert_close(ours, output(model, kwargs), rtol=1e-5, atol=1e-5)
    shorter = kwargs | {"encoder_attention_mask": torch.ones(2, 16, dtype=torch.bool).tril(6)}
    ours = output(compiled, shorter)
    assert planner.report(compiled).calls == (1, 1)
    assert planner.report(compiled).intercepted == (True, True)
    assert "  intercepted: graph breaks or hooks keep the model from being captured whole" in str(
        planner.report(compiled)
    )
    with MaskedDense(planner.report(compiled).plans[1]):
        torch.testing.assert_close(ours, output(model, shorter), rtol=1e-5, atol=1e-5)


class Switching(torch.nn.Module):
    """The order of two attentions depends on a value, which neither shapes nor guards show."""

    def forward(self, x, y):
        short, long = (t.flatten(2).transpose(1, 2)[:, None] for t in (x, y))
        pair = (short, long) if bool(x.mean() > 0) else (long, short)
        return torch.cat([F.scaled_dot_product_attention(q, q, q).flatten() for q in pair])


@pytest.mark.filterwarnings("ignore")
def test_a_call_that_diverges_from_the_plan_is_planned_anew():
    model, x, y = Switching(), torch.randn(1, 8, 6, 10).abs(), torch.randn(1, 8, 8, 10)
    compiled = planner.compile(model, group="3x5", **FORCE)
    for first in (x, -x, x):
        ours = compiled(first, y)
        (plan,) = planner.report(compiled).plans
        assert [d.queries for d in plan.decisions] == ([60, 80] if first is x else [80, 60])
        assert all(d.is_sparse for d in plan.decisions)
        with MaskedDense(plan):
            torch.testing.assert_close(ours, model(first, y), rtol=1e-5, atol=1e-5)


def test_a_model_without_attention_runs_and_the_report_says_so():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    compiled, x = planner.compile(model), torch.randn(2, 8)
    assert torch.equal(compiled(x), model(x))
    assert "no call of scaled_dot_product_attention" in str(planner.report(compiled))


class Cached(torch.nn.Module):
    """Writes to a cache that is no tensor, behind a graph break."""

    def forward(self, x, cache):
        torch._dynamo.graph_break()
        q = x.flatten(2).transpose(1, 2)[:, None]
        cache.kept.append(q)
        return F.scaled_dot_product_attention(q, q, q)


@pytest.mark.filterwarnings("ignore")
def test_a_look_at_a_model_leaves_its_cache_as_one_call_does():
    cache, image = types.SimpleNamespace(kept=[]), torch.randn(1, 8, 6, 5)
    planner.compile(Cached(), group="3x5", **FORCE)(image, cache)
    (kept,) = cache.kept
    torch.testing.assert_close(kept, image.flatten(2).transpose(1, 2)[:, None])


def test_an_inductor_like_backend_lowers_the_rest():
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", backend="aot_eager", **FORCE)
    eager = planner.compile(model, group="3x5", **FORCE)
    torch.testing.assert_close(output(compiled, kwargs), output(eager, kwargs), rtol=1e-5, atol=1e-5)


def test_the_report_says_what_stays_dense():
    model, kwargs = FAMILIES["wan"]()
    compiled = planner.compile(model, group="1x3x5", **FORCE)
    assert str(planner.report(compiled)) == "not called yet"
    output(compiled, kwargs)
    text = str(planner.report(compiled))
    assert "1 calls, 2 of 4 attention sites sparse" in text
    assert "dense blocks.0.attn2: cross-attention: keys are encoder_hidden_states:10" in text


def test_mistakes_are_named_at_once():
    model, kwargs = flux()
    with pytest.raises(NotAModule, match=r"pipe\.transformer"):
        planner.compile("flux.1-dev")
    with pytest.raises(UnknownName):
        planner.compile(model, target="h1000")
    with pytest.raises(BadOption):
        planner.compile(model, density=3.0)
    with pytest.raises(BadOption, match="inductr"):
        planner.compile(model, backend="inductr")
    with pytest.raises(NotCompiled, match=r"planner\.compile\(model\)"):
        planner.report(model)
    with pytest.raises(GroupTooLarge, match=r"transformer_blocks\.0\.attn"):
        planner.compile(model, group="4x4x4")(**kwargs)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"group": "64x64"}, "too large: the grid is hidden_states[h:12 w:16]"),
        ({"pattern": "neighborhood{radius=9}", "group": "4x4"}, "covers all: it reads the whole grid"),
    ],
)
def test_a_size_that_is_too_small_stays_dense_and_says_so(options, reason):
    """In a server one size among many must not stop a call; where a plan is asked for it is a mistake."""
    model, kwargs = flux()
    with pytest.raises((GroupTooLarge, PatternCoversAll)):
        planner.make_plan(model, kwargs=kwargs, **options, **FORCE)
    compiled = planner.compile(model, **options, **FORCE)
    torch.testing.assert_close(output(compiled, kwargs), output(model, kwargs))
    (plan,) = planner.report(compiled).plans
    assert {decision.reason.partition(" (")[0] for decision in plan.decisions} == {reason}
