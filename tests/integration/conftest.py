"""One tiny model and one real Triton for all integration tests."""

import pytest
from tiny_model import write_tiny_repository

from deepfake_serve import EmbeddedTriton


@pytest.fixture
def tiny_repository(tmp_path):
    """A repository of its own for tests that change it."""
    return write_tiny_repository(tmp_path / "model_repository")


@pytest.fixture(scope="session")
def shared_tiny_repository(tmp_path_factory):
    """A repository that no test may change."""
    return write_tiny_repository(tmp_path_factory.mktemp("served") / "model_repository")


@pytest.fixture(scope="session")
def embedded_triton(shared_tiny_repository):
    """A running Triton on free ports that serves the model `tiny`."""
    with EmbeddedTriton(shared_tiny_repository) as triton:
        yield triton
