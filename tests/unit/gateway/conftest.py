"""One clip for all tests, and a service for each."""

import gateways
import pytest
from media import make_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """The bytes of a short clip."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", duration_s=0.4).read_bytes()


@pytest.fixture
def gateway(tmp_path):
    """A service; `gateways.gateway` says what it is made of."""
    with gateways.gateway(tmp_path / "data") as client:
        yield client
