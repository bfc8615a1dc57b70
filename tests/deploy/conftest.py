"""What the tests of the chart look at."""

from typing import Any

import pytest
from kubernetes_releases import VALUES, release_of


@pytest.fixture(params=VALUES)
def release(request):
    """All manifests of a release, for each of the tested values; not to be changed."""
    return release_of(request.param)


@pytest.fixture
def find():
    """Return a function that finds one manifest by its values, kind and name behind the release's."""

    def find(values: str, kind: str, name: str = "") -> dict[str, Any]:
        full = f"release-{name}".rstrip("-")
        (found,) = [item for item in release_of(values) if item["kind"] == kind and item["metadata"]["name"] == full]
        return found

    return find
