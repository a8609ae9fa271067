"""Every transformer class of diffusers: captured, laid out, and computed as it should be."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import diffusers.models.transformers
import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin
from zoo import FORCE, ZOO
from zoo.registry import distance, outputs
from zoo.table import GROUPS, covering, plan_of, row

import planner
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.errors import CannotCapture
from planner.patterns.layout import TokenLayout
from planner.provenance.find_sites import find_sites
from planner.provenance.propagate import trace_provenance
from planner.provenance.rules.base import FIRST_INPUT_ID, SOURCE_STRIDE
from planner.runtime.eager.sdpa_mode import SdpaMode
from planner.runtime.masked_dense import MaskedDense

pytestmark = [pytest.mark.usefixtures("no_grad"), pytest.mark.filterwarnings("ignore")]

MODELS = Path(__file__).parents[2] / "docs" / "models.md"
CASES = [pytest.param(name, size, id=f"{name}-{'x'.join(map(str, size))}") for name in ZOO for size in ZOO[name].sizes]


def assert_close(ours, theirs):
    assert distance(ours, theirs) <= 1e-5 * distance(theirs, [0 * x for x in theirs])


def test_every_class_of_diffusers_is_here():
    classes = set()
    for module in pkgutil.iter_modules(diffusers.models.transformers.__path__):
        imported = importlib.import_module(f"diffusers.models.transformers.{module.name}")
        classes |= {
            name
            for name, value in vars(imported).items()
            if inspect.isclass(value) and issubclass(value, ModelMixin) and value.__module__ == imported.__name__
        }
    assert classes == ZOO.keys()


def test_the_pages_say_how_many_classes_get_sparse_sites():
    rows = re.findall(r"^\| (\w+) \| (\d+) of \d+ \|", MODELS.read_text(), re.MULTILINE)
    sparse = sum(int(count) > 0 for _, count in rows)
    assert len(rows) == len(ZOO)
    assert f"**{sparse} of the {len(ZOO)} transformer classes of diffusers" in MODELS.read_text()
    assert f"[{sparse} of {len(ZOO)}](docs/models.md)" in (MODELS.parents[1] / "README.md").read_text()


@pytest.mark.parametrize("left", [0.0, 3.0])
def test_weights_are_the_same_whatever_lay_in_memory(left, monkeypatch):
    """LuminaNext makes its padding token without filling it."""
    name, empty = "LuminaNextDiT2DModel", torch.empty
    expected = dict(ZOO[name].case(ZOO[name].sizes[0])[0].named_parameters())

    def used(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor if tensor.isnan().any() else tensor.fill_(left)

    monkeypatch.setattr(torch, "empty", used)
    for key, weight in ZOO[name].case(ZOO[name].sizes[0])[0].named_parameters():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_a_sparse_plan_is_masked_dense_attention(name, size):
    model, inputs = ZOO[name].case(size)
    compiled = plan_of(model, size)
    ours = outputs(compiled, inputs)
    (plan,) = planner.report(compiled).plans
    dense = outputs(*ZOO[name].case(size))
    model, inputs = ZOO[name].case(size)
    if any(decision.is_sparse for decision in plan.decisions):
        with MaskedDense(plan):
            judged = outputs(model, inputs)
        assert distance(ours, judged) <= 0.01 * distance(judged, dense)
    else:
        assert_close(ours, dense)
    if size == ZOO[name].sizes[0]:
        assert row(name, planner.report(compiled)) in MODELS.read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("ChromaTransformer2DModel", "inductor"),
        ("CogView4Transformer2DModel", "aot_eager"),
        ("MochiTransformer3DModel", "aot_eager"),
    ],
)
def test_a_backend_lowers_the_rest_of_a_few(name, backend):
    size = ZOO[name].sizes[1]
    eager, inputs = ZOO[name].case(size)
    lowered, _ = ZOO[name].case(size)
    options = {"pattern": "crisscross", "group": GROUPS[len(size)], **FORCE}
    ours = outputs(planner.compile(lowered, backend=backend, **options), inputs)
    assert_close(ours, outputs(planner.compile(eager, **options), inputs))


@pytest.mark.parametrize("name", [name for name in ZOO if len(ZOO[name].sizes[0]) > 1])
def test_a_plan_that_covers_everything_is_the_original(name):
    size = ZOO[name].sizes[0]
    model, inputs = ZOO[name].case(size)
    compiled = covering(model)
    assert_close(outputs(compiled, inputs), outputs(*ZOO[name].case(size)))
    (plan,) = planner.report(compiled).plans
    assert {decision.density for decision in plan.decisions} <= {1.0}


class Queries(SdpaMode):
    """Keeps the queries of every attention."""

    def __init__(self, decisions):
        super().__init__(decisions)
        self.kept = []

    def attend(self, decision, given):
        self.kept.append(given["query"].clone())
        return torch.nn.functional.scaled_dot_product_attention(**given)


@pytest.mark.parametrize("name", ZOO)
def test_the_token_that_an_input_changes_is_the_one_that_the_layout_says(name):
    """Change what a token is said to come from, at the first attention with a grid, and see which query changes."""
    size = ZOO[name].sizes[0]
    model, inputs = ZOO[name].case(size)
    try:
        capture = capture_module(model, (), inputs)
    except CannotCapture:
        capture = capture_module(model, (), inputs, runs=True)
    call = Call.of(model, (), inputs)
    provenance = trace_provenance(capture, call)
    sites = find_sites(capture, provenance, call)
    place = next(
        (n for n, site in enumerate(sites) if isinstance(site.layout, TokenLayout) and site.layout.grids), None
    )
    if place is None:
        assert "[" not in row_of(name).split("|")[3]
        return
    shadow = provenance.of(capture.attention_nodes()[place].args[0])
    origins = shadow[0, 0, :, 0].expand(sites[place].queries)
    layout = sites[place].layout
    tokens = torch.arange(layout.grid_start, layout.grid_start + layout.grid.tokens)[:: max(1, layout.grid.tokens // 3)]
    before = queries(name, size, place, len(sites))
    for token in tokens.tolist():
        origin = int(origins[token])
        assert origin >= FIRST_INPUT_ID
        after = queries(
            name, size, place, len(sites), provenance.sources[origin // SOURCE_STRIDE], origin % SOURCE_STRIDE
        )
        change = (after - before)[0].abs().amax((0, 2))
        assert int(change.argmax()) == token


def queries(name, size, place, sites, source=None, element=0):
    """Return the queries of one attention, where one element of an input may be changed with all its channels."""
    model, inputs = ZOO[name].case(size)
    if source is not None:
        tensor = dict(Call.of(model, (), inputs).tensors)[source.name]
        tensor[0][torch.unravel_index(torch.tensor(element), source.id_shape)] += 10.0
    kept = Queries([None] * 4 * sites)
    with kept:
        model(**inputs)
    return kept.kept[place]


def row_of(name):
    return next(line for line in MODELS.read_text().splitlines() if line.startswith(f"| {name} "))
