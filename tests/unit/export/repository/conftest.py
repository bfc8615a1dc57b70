"""A repository with several versions."""

import pytest
from repository_crashes import add_version


@pytest.fixture
def root(tmp_path):
    """A repository with three versions of `tiny`, of which the newest is served."""
    root = tmp_path / "models"
    for threshold in (0.5, 0.6, 0.7):
        add_version(root, threshold)
    return root
