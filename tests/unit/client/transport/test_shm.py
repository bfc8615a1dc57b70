"""The memory shared with a server: who gets which place, and that nothing stays behind. Without a server."""

from __future__ import annotations

import numpy as np
import pytest

from deepfake_client.transport import shm as transport_shm
from deepfake_client.transport.shm import SharedRegion
from deepfake_preprocess.errors import ServerUnavailableError, SharedMemoryError

CROP = (20, 20, 3)
CROP_BYTES = 1200


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A small region, in a folder that no other process uses."""
    monkeypatch.setattr(transport_shm, "REGION_BYTES", 10 * CROP_BYTES)
    monkeypatch.setattr(transport_shm, "SHARED_MEMORY", tmp_path)
    return tmp_path


def crops(count: int, value: int) -> np.ndarray:
    return np.full((count, *CROP), value, np.uint8)


def test_the_server_maps_the_file_and_its_name_is_gone_at_once(folder):
    seen = []

    def register(name: str, byte_size: int) -> None:
        path = folder / name
        seen.append((path.stat().st_size, path.stat().st_mode & 0o777, byte_size))

    region = SharedRegion(CROP_BYTES, register=register)
    assert seen == [(12_000, 0o600, 12_000)]
    assert not list(folder.iterdir())
    with region.holding(crops(2, 7)) as offset:
        assert region._memory[offset : offset + 2400] == b"\x07" * 2400


def test_requests_get_places_of_their_own_and_give_them_back():
    region = SharedRegion(CROP_BYTES, register=lambda *_: None)
    with region.holding(crops(4, 1)) as first, region.holding(crops(6, 2)) as second:
        assert (first, second) == (0, 4 * CROP_BYTES)
        assert region._memory[: 4 * CROP_BYTES] == b"\x01" * 4 * CROP_BYTES, "not overwritten by the second"
        with region.holding(crops(1, 3)) as third:
            assert third is None, "full: the request goes another way"
    with pytest.raises(RuntimeError), region.holding(crops(10, 4)):
        raise RuntimeError
    with region.holding(crops(10, 5)) as offset:
        assert offset == 0, "places come back also after an error"
    with region.holding(crops(11, 6)) as offset:
        assert offset is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ServerUnavailableError("gone")])
def test_nothing_is_left_when_the_server_does_not_take_it(folder, error):
    def register(name: str, byte_size: int) -> None:
        raise error

    with pytest.raises(type(error)):
        SharedRegion(CROP_BYTES, register=register)
    assert not list(folder.iterdir())


def test_a_full_file_system_is_named(folder, monkeypatch):
    monkeypatch.setattr(transport_shm, "REGION_BYTES", 2**60)
    with pytest.raises(SharedMemoryError, match=r"has no room .* or set `protocol` to 'grpc'"):
        SharedRegion(2**55, register=lambda *_: None)
    assert not list(folder.iterdir())
