import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch._dynamo.reset()


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the emitted sources that are kept in goldens/")
