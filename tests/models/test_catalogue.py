import json

import pytest
import torch

from planner.errors import BadModelFolder, BadOption, BadSize, NoExampleInputs, UnknownName
from planner.models.catalogue import CATALOGUE, build, default_size, load_config, scale_of
from planner.models.inputs import FAMILIES, example_inputs


@pytest.mark.parametrize("name", CATALOGUE)
def test_parameter_counts_are_those_of_the_public_models(name):
    model = build(load_config(name), dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == CATALOGUE[name].parameters
    assert type(model).__name__ == CATALOGUE[name].class_name
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", CATALOGUE)
def test_default_sizes_make_whole_tokens(name):
    size, frames = default_size(name)
    inputs = example_inputs(load_config(name), size, frames, scale=scale_of(name))
    assert inputs["hidden_states"].device.type == "meta"


@pytest.mark.parametrize(("name", "tokens"), [("emoji-flux", 64 * 64), ("emoji-hunyuan", 8 * 32 * 32)])
def test_the_reference_models_see_every_two_pixels_and_64_words(name, tokens):
    size, frames = default_size(name)
    inputs = example_inputs(load_config(name), size, frames, scale=scale_of(name))
    picture = inputs["hidden_states"]
    assert (picture.shape[1] if picture.dim() == 3 else picture[0, 0].numel() // 4) == tokens
    assert inputs["encoder_hidden_states"].shape[1] == 64


def test_a_folder_works_in_place_of_a_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(load_config("flux.1-dev")))
    assert load_config(str(tmp_path)) == load_config("flux.1-dev")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownName, match=r"Did you mean 'hunyuanvideo'\?"):
        load_config("hunyuan-video")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[1]", 'has no "_class_name"'),
        ('{"_class_name": 3}', 'has no "_class_name"'),
        ('"' + "x" * 2**20 + '"', "larger than 1 MiB"),
    ],
)
def test_bad_folders_are_refused(tmp_path, content, fault):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadModelFolder) as error:
        load_config(str(tmp_path))
    assert fault in str(error.value)


@pytest.mark.parametrize("name", ["NoSuchModel", "FluxPipeline", "logging"])
def test_only_model_classes_of_diffusers_are_built(name):
    with pytest.raises(BadModelFolder, match="has no model class"):
        build({"_class_name": name})


@pytest.mark.parametrize(
    ("model", "size", "frames", "batch", "error", "fault"),
    [
        ("flux.1-dev", (1000, 1024), 1, 1, BadSize, "The nearest is 992x1024."),
        ("flux.1-dev", (0, 1024), 1, 1, BadSize, "multiples of 16 pixels"),
        ("flux.1-dev", (2**20, 2**20), 1, 1, BadSize, "more than 2**36"),
        ("flux.1-dev", (1024, 1024), 5, 1, BadOption, "a model of still pictures"),
        ("flux.1-dev", (1024, 1024), 1, 0, BadOption, "between 1 and 1024"),
        ("hunyuanvideo", (1280, 720), 128, 1, BadSize, "The nearest is 129."),
        ("ltx-video", (704, 500), 161, 1, BadSize, "The nearest is 704x512."),
    ],
)
def test_impossible_sizes_name_the_nearest(model, size, frames, batch, error, fault):
    with pytest.raises(error) as caught:
        example_inputs(load_config(model), size, frames, batch=batch)
    assert fault in str(caught.value)


def test_a_class_without_inputs_is_named():
    with pytest.raises(NoExampleInputs, match=r"planner\.make_plan"):
        example_inputs({"_class_name": "DiTTransformer2DModel"}, (512, 512))


def test_every_class_of_the_catalogue_has_inputs():
    assert {entry.class_name for entry in CATALOGUE.values()} <= set(FAMILIES)
