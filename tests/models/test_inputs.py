import pytest

from planner.errors import BadOption, BadSize, NoExampleInputs
from planner.models.catalogue import default_size, load_config, scale_of
from planner.models.families.base import CATALOGUE, FAMILIES
from planner.models.inputs import example_inputs


@pytest.mark.parametrize("name", CATALOGUE)
def test_default_sizes_make_whole_tokens(name):
    size, frames = default_size(name)
    inputs = example_inputs(load_config(name), size, frames, scale=scale_of(name))
    assert inputs["hidden_states"].device.type == "meta"


@pytest.mark.parametrize(("name", "tokens"), [("emoji-flux", 64 * 64), ("emoji-hunyuan", 8 * 32 * 32)])
def test_the_reference_models_see_every_two_pixels_and_64_words(name, tokens):
    size, frames = default_size(name)
    inputs = example_inputs(load_config(name), size, frames, scale=scale_of(name))
    image = inputs["hidden_states"]
    assert (image.shape[1] if image.dim() == 3 else image[0, 0].numel() // 4) == tokens
    assert inputs["encoder_hidden_states"].shape[1] == 64


@pytest.mark.parametrize(
    ("model", "size", "frames", "batch", "error", "fault"),
    [
        ("flux.1-dev", (1000, 1024), 1, 1, BadSize, "The nearest is 992x1024."),
        ("flux.1-dev", (0, 1024), 1, 1, BadSize, "multiples of 16 pixels"),
        ("flux.1-dev", (2**20, 2**20), 1, 1, BadSize, "more than 2**36"),
        ("flux.1-dev", (1024, 1024), 5, 1, BadOption, "a model of still images"),
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
