"""What snippets of the documentation begin with: small models in place of large ones, made here."""

from functools import partialmethod

import torch
from zoo import flux as tiny_flux
from zoo.pipelines import flux


def tiny_flux_pipeline():
    """Make a FLUX pipeline of random weights that takes a prompt, as the public one does, and few steps."""
    torch.manual_seed(0)
    pipe = flux()[0].to("cpu")
    few = type("FewSteps", (type(pipe),), {"__call__": partialmethod(type(pipe).__call__, num_inference_steps=6)})
    pipe.__class__ = few
    return pipe


def tiny_flux_call():
    """Make a FLUX transformer of random weights, and the arguments of one call."""
    torch.manual_seed(0)
    return tiny_flux()
