import json

import pytest
import torch

from planner.errors import BadModelFolder, UnknownName
from planner.models.catalogue import CATALOGUE, build, load_config


@pytest.mark.parametrize("name", CATALOGUE)
def test_parameter_counts_are_those_of_the_public_models(name):
    model = build(load_config(name), dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == CATALOGUE[name].parameters
    assert type(model).__name__ == CATALOGUE[name].class_name
    assert {p.device.type for p in model.parameters()} == {"meta"}


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
