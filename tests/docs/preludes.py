"""What snippets of the documentation begin with: small models in place of large ones, made here."""

import torch
from zoo import flux as tiny_flux
from zoo import flux_inputs
from zoo.pipelines import flux


def tiny_flux_pipeline():
    """A FLUX pipeline of random weights that takes a prompt, as the public one does."""
    torch.manual_seed(0)
    return flux()[0].to("cpu")


def tiny_flux_call():
    """A FLUX transformer of random weights, and the arguments of one call."""
    torch.manual_seed(0)
    return tiny_flux(), flux_inputs()
