import shutil

import pytest
import torch

import planner
from planner import models
from planner.errors import BadModelFolder, DamagedFile, MissingDependency, NoWeights, UnknownName
from planner.models.catalogue import CATALOGUE, load_config
from planner.models.emoji.integrity import digest
from planner.models.emoji.reference import DIGESTS, SHIPPED, load_scorer, seal, verify, weights_folder
from planner.models.metrics.images import as_images
from planner.plan.quality import psnr

WEIGHTS = weights_folder()


@pytest.fixture(scope="module")
def flux():
    return models.load("emoji-flux")


@pytest.fixture(scope="module")
def apple(flux):
    return flux.pipeline(["red apple"], shape=(3, 64, 64), steps=8)


def test_the_catalogue_knows_what_is_shipped():
    assert {path.parent.name for path in WEIGHTS.glob("*/transformer")} == set(SHIPPED)


def test_all_weights_fit_in_80_megabytes_of_bf16():
    from safetensors import safe_open

    files = list(WEIGHTS.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) < 80e6
    for path in files:
        if path.name == "evidence.safetensors":
            continue
        with safe_open(path, framework="pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("name", SHIPPED)
def test_loading_gives_the_trained_parameters(name):
    model, scheduler, pipeline = models.load(name)
    assert sum(p.numel() for p in model.parameters()) == CATALOGUE[name].parameters
    assert type(model).__name__ == CATALOGUE[name].class_name
    assert pipeline.transformer is model
    assert pipeline.scheduler is scheduler
    assert not model.training
    assert pipeline.shape == {"emoji-flux": (3, 128, 128), "emoji-hunyuan": (3, 8, 64, 64)}[name]
    assert pipeline.shape[-2:] == CATALOGUE[name].size[::-1]
    assert (pipeline.guidance, pipeline.steps) == (4.0, 24)
    for key, value in load_config(name).items():
        found = model.config.get(key, type(model).__name__)
        assert (list(found) if isinstance(value, list) else found) == value


def test_a_red_apple_is_red_in_the_middle_and_white_around(apple):
    middle = apple[0, :, 24:44, 24:40].mean((1, 2))
    corners = torch.stack([apple[0, :, y, x] for y in (0, -1) for x in (0, -1)])
    assert corners.min() > 0.9
    assert middle[0] > 0.6
    assert middle[1:].max() < middle[0] - 0.3


def test_the_scorer_knows_an_apple_from_a_rocket(flux, apple):
    scorer = load_scorer()
    prompts = flux.pipeline.embed(["red apple", "rocket", "pizza", "octopus"]).pooled
    scores = scorer.embed_images(apple) @ scorer.embed_prompts(prompts).T
    assert scores.argmax() == 0


def test_a_planned_apple_is_the_dense_one_where_the_pattern_keeps_much(flux, apple):
    compiled = planner.compile(flux.model, pattern="crisscross", group="8x8", min_speedup=0)
    planned = flux.pipeline.using(compiled)(["red apple"], shape=(3, 64, 64), steps=8)
    (plan,) = planner.report(compiled).plans
    assert plan.decisions[0].is_sparse
    assert 15 < float(psnr(planned, apple)) < 60


def test_a_clip_holds_its_object():
    pipeline = models.load("emoji-hunyuan").pipeline
    clip = pipeline(["red heart"], shape=(3, 2, 64, 64), steps=4)
    first, second = as_images(clip)
    assert clip.shape == (1, 3, 2, 64, 64)
    assert first[0, 28:36, 28:36].mean() > first[1, 28:36, 28:36].mean() + 0.3
    assert float((first - second).abs().mean()) < 0.15


def test_unknown_names_and_models_without_weights():
    with pytest.raises(UnknownName, match="emoji-flux"):
        models.load("emoji-fluks")
    with pytest.raises(NoWeights, match=r"flux\.1-dev.*\n.*emoji-flux, emoji-hunyuan"):
        models.load("flux.1-dev")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_weights_are_named(tmp_path, damage):
    home = tmp_path / "scorer"
    shutil.copytree(WEIGHTS / "emoji-scorer", home)
    path = home / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-100])
    with pytest.raises(DamagedFile, match=r"model\.safetensors is damaged"):
        verify(home)


def test_folders_without_weights_or_digests_are_named(tmp_path):
    with pytest.raises(BadModelFolder, match=r"transformer/config\.json"):
        models.load("emoji-flux", folder=tmp_path)
    with pytest.raises(DamagedFile, match=DIGESTS):
        verify(tmp_path)


def test_other_weights_of_the_same_model_load_from_a_folder(tmp_path, flux):
    flux.model.save_pretrained(tmp_path / "transformer")
    flux.scheduler.save_pretrained(tmp_path / "scheduler")
    again = models.load("emoji-flux", folder=tmp_path).model.state_dict()
    assert all(torch.equal(again[key], value) for key, value in flux.model.state_dict().items())


def test_sealing_covers_every_weight_and_config(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    (tmp_path / "card.md").write_text("free to change")
    seal(tmp_path)
    assert (tmp_path / DIGESTS).read_text() == f"{digest(tmp_path / 'a' / 'config.json')}  a/config.json\n"
    verify(tmp_path)


@pytest.mark.parametrize("name", [*SHIPPED, "emoji-scorer"])
def test_shipped_weights_are_sealed(name):
    verify(WEIGHTS / name)
    sealed = {line.partition("  ")[2] for line in (WEIGHTS / name / DIGESTS).read_text().splitlines()}
    files = {path.relative_to(WEIGHTS / name).as_posix() for path in (WEIGHTS / name).rglob("*.safetensors")}
    assert files <= sealed


def test_without_the_package_of_weights_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr("planner.models.emoji.reference.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"Install grat-planner\[demo\]\."):
        models.load("emoji-flux")
