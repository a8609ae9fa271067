import pytest
import torch
import torch.nn.functional as F
from examples import on_meta
from zoo import EXPECTED, FAMILIES, flux, mochi

import planner
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.errors import LayoutMismatch
from planner.provenance.find_sites import find_sites
from planner.provenance.propagate import trace_provenance
from planner.runtime.masked_dense import MaskedDense


def sites_of(model, kwargs, args=(), layout=None):
    capture, call = capture_module(model, args, kwargs), Call.of(model, args, kwargs)
    return find_sites(capture, trace_provenance(capture, call), call, layout)


def described(sites):
    """Layout of each site that a pattern can be applied to, the reason for the others."""
    return {site.name: str(site.layout) if site.why_not() is None else site.why_not() for site in sites}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", FAMILIES)
def test_layouts_of_the_families(name, device):
    model, kwargs = FAMILIES[name]()
    layouts = described(sites_of(*(on_meta(model, kwargs) if device == "meta" else (model, kwargs))))
    assert layouts.keys() == EXPECTED[name].keys()
    for site, expected in EXPECTED[name].items():
        exact = "[" in expected
        assert layouts[site] == expected if exact else layouts[site].startswith(expected)


def test_mochi_is_planned_with_its_data_dependent_text():
    layouts = described(sites_of(*mochi()))
    assert layouts["transformer_blocks.0.attn1"] == "hidden_states[t:2 h:6 w:8] | encoder_hidden_states:16"
    assert layouts["transformer_blocks.0.attn1#1"] == "hidden_states[t:2 h:6 w:8] | encoder_hidden_states:12"
    assert layouts["time_embed.pooler"].startswith("one token")


class Toy(torch.nn.Module):
    """One attention over a sequence that a function makes of the inputs."""

    def __init__(self, sequence):
        super().__init__()
        self.sequence = sequence
        self.register = torch.nn.Parameter(torch.randn(1, 3, 8))

    def forward(self, x, y=None):
        tokens = self.sequence(self, x) if y is None else self.sequence(self, x, y)
        q = tokens[:, None]
        return F.scaled_dot_product_attention(q, q, q)


IMAGE = torch.randn(1, 8, 6, 5)


def flat(x):
    return x.flatten(2).transpose(1, 2)


def written_over(index):
    index[:15] = torch.arange(14, -1, -1)
    return index


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (lambda m, x: flat(x), "x[h:6 w:5]"),
        (lambda m, x: x.transpose(2, 3).flatten(2).transpose(1, 2), "x[w:5 h:6]"),
        (lambda m, x: torch.cat([m.register.expand(1, -1, -1), flat(x)], 1), "learned:3 | x[h:6 w:5]"),
        (lambda m, x: flat(x)[:, :10], "x[h:2 w:5]"),
        (lambda m, x: flat(x + 1).relu() * 2, "x[h:6 w:5]"),
        (lambda m, x: flat(x).index_select(1, torch.arange(10)), "x[h:2 w:5]"),
        (lambda m, x: flat(x)[:, torch.arange(10)], "x[h:2 w:5]"),
        (lambda m, x: F.conv2d(x, torch.ones(8, 8, 2, 1), stride=(2, 1)).flatten(2).mT, "x[h:3 w:5]"),
        (lambda m, x: F.conv2d(x, torch.ones(8, 8, 3, 3), padding=1).flatten(2).mT, "x[h:6 w:5]"),
        (lambda m, x: flat(F.pixel_unshuffle(x[:, :, :, :4], 2)) @ torch.ones(32, 8), "x[h:3 w:2]"),
        (lambda m, x: flat(x.repeat(2, 1, 1, 1)), "x[h:6 w:5]"),
        (lambda m, x: F.layer_norm(flat(x), (8,)), "x[h:6 w:5]"),
        (lambda m, x: flat(x) + flat(x).mean(1, keepdim=True), "x[h:6 w:5]"),
        (lambda m, x: torch.stack([flat(x)[..., ::2], flat(x)[..., 1::2]], -1).flatten(2), "x[h:6 w:5]"),
        (lambda m, x: torch.einsum("bnc,cd->bnd", flat(x), torch.ones(8, 8)), "x[h:6 w:5]"),
        (lambda m, x: torch.einsum("bnc,bhc->bnh", flat(x), flat(x)[:, :8]), "x[h:6 w:5]"),
        (lambda m, x: torch.einsum("bnc,bnc,d->ndb", flat(x), flat(x), torch.ones(8)).permute(2, 0, 1), "x[h:6 w:5]"),
        (lambda m, x: flat(x) / flat(x).norm(2, -1, keepdim=True), "x[h:6 w:5]"),
        (lambda m, x: flat(x) / flat(x).norm(2, 1, keepdim=True), "x[h:6 w:5]"),
        (lambda m, x: F.normalize(flat(x), dim=1), "x[h:6 w:5]"),
        (
            lambda m, x: torch.zeros(1, 34, 8).index_copy(1, torch.arange(30) + 4, flat(x)),
            "conditioning:4 | x[h:6 w:5]",
        ),
        (lambda m, x: torch.zeros(1, 34, 8).index_put((torch.tensor(0), torch.arange(30)), flat(x)[0]), "x[h:6 w:5]"),
        (lambda m, x: flat(x).index_put((torch.tensor([0]),), flat(x) + 1), "x[h:6 w:5]"),
        (
            lambda m, x: torch.zeros(1, 34, 8).masked_scatter((torch.arange(34) < 30)[None, :, None], flat(x)),
            "x[h:6 w:5] | conditioning:4",
        ),
        (lambda m, x: torch.where(torch.ones(1, 30, 1, dtype=torch.bool), flat(x), flat(x).flip(1)), "x[h:6 w:5]"),
        (lambda m, x: torch.nn.utils.rnn.pad_sequence([flat(x)[0]], batch_first=True), "x[h:6 w:5]"),
        (lambda m, x: torch.cat([flat(x).mean(1, keepdim=True), flat(x)], 1), "conditioning:1 | x[h:6 w:5]"),
        (lambda m, x: torch.cat([flat(x), torch.zeros(1, 3, 8)], 1), "x[h:6 w:5] | "),
        (lambda m, x: torch.cat([torch.zeros(1, 30, 2), flat(x)[..., :6]], 2), "x[h:6 w:5]"),
        (lambda m, x: flat(x).repeat_interleave(torch.ones(30, dtype=torch.int64), dim=1), "x[h:6 w:5]"),
        (lambda m, x: x.permute(0, 2, 3, 1).flatten(1, 2), "x[h:6 w:5]"),
        (lambda m, x: torch.cat([flat(x), flat(x)], 1), "x[h:6 w:5] | x:30"),
        # The order of these is no raster of a grid, or not known.
        (lambda m, x: flat(x).index_put((torch.tensor([0]),), flat(x).flip(1)), "layout unknown: the tokens of x"),
        (lambda m, x: torch.cat([flat(x).cumsum(1)[:, :1], flat(x)], 1), "layout unknown: provenance is lost"),
        (lambda m, x: flat(x).roll(7, 1), "layout unknown: the tokens of x are not in raster order"),
        (lambda m, x: flat(x).flip(1), "layout unknown: the tokens of x are not in raster order"),
        (lambda m, x: flat(x).index_select(1, written_over(torch.arange(30))), "layout unknown: provenance is lost"),
        (lambda m, x: flat(x)[:, :11], "layout unknown: the tokens of x are not in raster order"),
        (lambda m, x: flat(x).cumsum(1), "layout unknown: provenance is lost, probably in cumsum"),
        (lambda m, x: flat(x).sort(1)[0], "layout unknown: provenance is lost, probably in sort"),
        (lambda m, x: flat(x).mean(1, keepdim=True).expand(1, 30, 8), "layout unknown: its tokens do not come"),
        (lambda m, x: m.register, "layout unknown: its tokens do not come from an input"),
    ],
)
def test_order_of_tokens_is_followed(sequence, expected):
    (site,) = sites_of(Toy(sequence), {}, (IMAGE,))
    assert (str(site.layout) if site.why_not() is None else site.why_not()).startswith(expected)


def test_writing_in_place_moves_tokens_too():
    def written(m, x):
        tokens = torch.zeros(1, 30, 8)
        tokens[..., :4] = flat(x)[..., :4]
        tokens[..., 4:] = flat(x)[..., 4:]
        return tokens

    def overwritten(m, x):
        tokens = flat(x).clone()
        tokens[:, :15] = flat(x)[:, 15:]
        return tokens

    def row_by_row(m, x):
        tokens = torch.zeros(2, 30, 8)
        for row in range(2):
            tokens[row, :30] = flat(x)[row]
        return tokens

    def channel_by_channel_from_the_end(m, x):
        tokens = torch.zeros(1, 30, 8)
        for channel in range(8):
            tokens.select(-1, channel).copy_(flat(x)[..., channel])
        return tokens

    def one_row_only(m, x):
        tokens = torch.zeros(2, 30, 8)
        tokens[0] = flat(x)[0]
        return tokens

    two = IMAGE.repeat(2, 1, 1, 1)
    assert str(sites_of(Toy(row_by_row), {}, (two,))[0].layout) == "x[h:6 w:5]"
    assert str(sites_of(Toy(channel_by_channel_from_the_end), {}, (IMAGE,))[0].layout) == "x[h:6 w:5]"
    assert sites_of(Toy(one_row_only), {}, (two,))[0].why_not().startswith("layout unknown")

    def viewed_before(m, x):
        tokens = flat(x).clone()
        view = tokens[:, :]
        tokens.copy_(tokens.flip(1))
        return view

    assert sites_of(Toy(viewed_before), {}, (IMAGE,))[0].why_not().startswith("layout unknown")
    assert str(sites_of(Toy(written), {}, (IMAGE,))[0].layout) == "x[h:6 w:5]"
    assert sites_of(Toy(overwritten), {}, (IMAGE,))[0].why_not().startswith("layout unknown")


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (lambda m, x: x, "no grid in x:30"),
        (lambda m, x: F.conv1d(x.mT, torch.ones(8, 8, 3), padding=1).mT, "x[n:30]"),
        (lambda m, x: F.conv1d(x.mT, torch.ones(8, 8, 2), stride=2).mT, "x[n:15]"),
        (lambda m, x: F.conv1d(x.mT, torch.ones(8, 8, 1)).mT[:, torch.arange(29, -1, -1)], "no grid in x:30"),
    ],
)
def test_tokens_that_a_model_convolves_over_are_in_order(sequence, expected):
    (site,) = sites_of(Toy(sequence), {}, (torch.randn(1, 30, 8),))
    assert (str(site.layout) if site.why_not() is None else site.why_not()).startswith(expected)


def test_of_two_images_in_one_sequence_the_larger_is_the_grid():
    both = Toy(lambda m, x, y: torch.cat([flat(x), flat(y)], 1))
    assert str(sites_of(both, {}, (IMAGE, IMAGE + 1))[0].layout) == "x[h:6 w:5] | y:30"
    assert str(sites_of(both, {}, (IMAGE[..., :4], IMAGE))[0].layout) == "x:24 | y[h:6 w:5]"


def test_a_control_residual_keeps_the_first_inputs_layout():
    (site,) = sites_of(Toy(lambda m, x, y: flat(x) + flat(y)), {}, (IMAGE, IMAGE + 1))
    assert str(site.layout) == "x[h:6 w:5]"


def test_sums_of_different_places_are_unknown():
    (site,) = sites_of(Toy(lambda m, x, y: flat(x) + flat(y).flip(1)), {}, (IMAGE, IMAGE + 1))
    assert site.why_not().startswith("layout unknown")


def test_rows_of_the_batch_must_agree():
    def shuffled(m, x):
        return torch.cat([flat(x), flat(x).flip(1)], 0)

    (site,) = sites_of(Toy(shuffled), {}, (IMAGE,))
    assert site.why_not() == "layout unknown: the rows of the batch are laid out differently"


def test_without_ids_flux_needs_a_layout_from_the_caller():
    model, kwargs = flux()
    kwargs["img_ids"] = kwargs["img_ids"].to("meta")
    model, kwargs = on_meta(model, kwargs)
    kwargs["txt_ids"] = kwargs["txt_ids"].to("meta")
    site = sites_of(model, kwargs)[0]
    assert site.why_not().startswith("no grid in encoder_hidden_states:8 | hidden_states:192")
    site = sites_of(model, kwargs, layout="text:8 | h:12 w:16")[0]
    assert site.why_not() is None
    assert str(site.layout) == "text:8 | h:12 w:16"


@pytest.mark.parametrize(
    ("layout", "fault"),
    [
        ("text:8 | h:12 w:15", '"text:8 | h:12 w:15" is 188 tokens; the site has 200'),
        ("h:12 w:16 | text:8", "cut the 200 tokens at different places"),
    ],
)
def test_a_wrong_layout_is_refused(layout, fault):
    with pytest.raises(LayoutMismatch) as error:
        sites_of(*flux(), layout=layout)
    assert fault in str(error.value)
    assert "transformer_blocks.0.attn" in str(error.value)


def test_a_mask_that_differs_from_query_to_query_stays_dense():
    class Masked(torch.nn.Module):
        def forward(self, x):
            q = flat(x)[:, None]
            return F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(30, 30).tril())

    (site,) = sites_of(Masked(), {}, (IMAGE,))
    assert site.why_not() == "its mask of shape (30, 30) differs from query to query"


def test_dropout_stays_dense():
    class Dropping(torch.nn.Module):
        def forward(self, x):
            q = flat(x)[:, None]
            return F.scaled_dot_product_attention(q, q, q, dropout_p=0.1)

    (site,) = sites_of(Dropping(), {}, (IMAGE,))
    assert "model.eval()" in site.why_not()


def with_first_query_blind(mask):
    mask[:, :, 0, 1:] = False
    return mask


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (lambda m: m[:, None, None], "keys"),
        (lambda m: m[:, None, None].expand(-1, 2, 30, -1), "keys"),
        (lambda m: m[:, None, None].repeat(1, 1, 30, 1), "keys"),
        (lambda m: m[:, None, None] & m[:, None, :, None], "both"),
        (lambda m: m[:, None, None] * m[:, None, :, None], "both"),
        (lambda m: m.view(1, 1, 1, 30).repeat(1, 1, 30, 1) & m.view(1, 1, 1, 30).repeat(1, 1, 30, 1).mT, "both"),
        (lambda m: (m[:, None, None] & m[:, None, :, None]).tril(), None),
        (lambda m: m[:, None, None] | m[:, None, :, None], None),
        (lambda m: m[:, None, None] == m[:, None, :, None], None),
        (lambda m: m.expand(2, 30)[None, :, None] & m[:, None, :, None], "both"),
        (lambda m: torch.stack([m, ~m], 1)[:, :, None], None),
        (lambda m: (m[:, None, None] | ~m[:, None, None]).expand(-1, 1, 30, -1), "keys"),
        (lambda m: with_first_query_blind(m[:, None, None].repeat(1, 1, 30, 1)), None),
        (lambda m: with_first_query_blind(m[:, None, None] & m[:, None, :, None]), None),
        (lambda m: (m[:, None, None].int() * 2 & m[:, None, :, None].int() * 3).bool(), None),
    ],
)
def test_masks_that_are_products_of_a_mask_of_keys_go_with_a_pattern(mask, kind):
    class Masked(torch.nn.Module):
        def forward(self, x, keys):
            q = flat(x)[:, None].expand(-1, 2, -1, -1)
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask(keys))

    keys = torch.arange(30)[None] < 20
    (site,) = sites_of(Masked(), {}, (IMAGE, keys))
    assert site.mask_kind == kind
    assert (site.why_not() is None) == (kind is not None or site.mask[-2] == 1)
    compiled = planner.compile(Masked(), pattern="crisscross", group="3x5", target="cpu", min_speedup=0.0)
    with torch.no_grad():
        ours = compiled(IMAGE, keys)
        with MaskedDense(planner.report(compiled).plans[0]):
            torch.testing.assert_close(ours, Masked()(IMAGE, keys), rtol=1e-5, atol=1e-5)
