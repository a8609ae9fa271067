"""What holds of every registered family."""

import inspect

import diffusers
import pytest
import torch

from planner.models.families.base import CATALOGUE, FAMILIES, velocity_of


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_that_of_a_model_class_of_diffusers(name):
    assert issubclass(getattr(diffusers, name), torch.nn.Module)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_configuration_names_arguments_of_its_class(name):
    entry = CATALOGUE[name]
    assert entry.class_name in FAMILIES
    assert set(entry.config) <= set(inspect.signature(getattr(diffusers, entry.class_name)).parameters)


def test_what_is_trained_can_be_sampled():
    trained = {entry.class_name for entry in CATALOGUE.values() if entry.trained}
    assert {name for name, family in FAMILIES.items() if family.velocity} == trained
    for name in trained:
        module = type(name, (torch.nn.Module,), {})()
        assert velocity_of(module) is FAMILIES[name].velocity
