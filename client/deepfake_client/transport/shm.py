"""gRPC with the crops in system shared memory, for a server on the same host.

One region holds the crops of all requests in flight. Its name in ``/dev/shm`` lives only until the server has mapped
it, so nothing is left behind however the client ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as kserve

from deepfake_client.transport.connection import Connection
from deepfake_client.transport.grpc import GrpcTransport, infer_request
from deepfake_client.transport.protocol import ServedModel
from deepfake_preprocess.errors import ServerError, SharedMemoryError

SHARED_MEMORY: Final = Path("/dev/shm")
REGION_BYTES: Final = 32 * 2**20
"""222 crops of 224 px: more than the client has in flight by default, and half of what Docker gives a container."""

CLOSE_TIMEOUT_S: Final = 5.0
"""A server that does not answer must not keep the client from ending."""
CLOSE_AGAIN_S: Final = 0.02
"""Between tries to end a region that the server still uses."""


class SharedMemoryTransport(GrpcTransport):
    """gRPC whose crops travel through system shared memory of server and client; calls and answers are the same.

    Answers stay in the messages: they are four bytes a crop. A request that finds no room in the region goes by plain
    gRPC, so nobody waits for another's request.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._regions: dict[int, SharedRegion] = {}
        self._making = threading.Lock()

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`; SharedMemoryError where no memory is shared, before any work is done."""
        found = await super().describe(model)
        await self.region_for(found.spec.input_height_px * found.spec.input_width_px * 3)
        return found

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        region = await self.region_for(faces[0].nbytes)
        try:
            return await self._infer_through(region, model, faces, timeout_s)
        except SharedMemoryError:
            # A server that was restarted knows no regions.
            region = await self.region_for(faces[0].nbytes, instead_of=region)
            return await self._infer_through(region, model, faces, timeout_s)

    async def close(self) -> None:
        """See `Transport.close`."""
        for region in list(self._regions.values()):
            # Where the server is gone, so is its part of the region.
            with contextlib.suppress(ServerError):
                await self._unregister(region.name)
        self._regions.clear()
        await super().close()

    async def _unregister(self, name: str) -> None:
        """Let the server forget a region; it refuses that while it has requests that were given up."""
        give_up_at = time.monotonic() + CLOSE_TIMEOUT_S
        while True:
            try:
                await self._ask("SystemSharedMemoryUnregister", timeout_s=CLOSE_TIMEOUT_S, name=name)
                return
            except SharedMemoryError:
                if time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(CLOSE_AGAIN_S)

    async def _infer_through(
        self, region: SharedRegion, model: ServedModel, faces: NDArray[np.uint8], timeout_s: float | None
    ) -> NDArray[np.float32]:
        timeout_s = timeout_s or self._timeout_s
        with region.holding(faces) as offset:
            if offset is None:
                return await super().infer(model, faces, timeout_s=timeout_s)
            request = encode_infer(model, faces, region.name, offset, timeout_s=timeout_s, bulk=self._bulk)
            return await self._score(model, request, num_faces=len(faces), timeout_s=timeout_s)

    async def region_for(self, crop_bytes: int, *, instead_of: SharedRegion | None = None) -> SharedRegion:
        """Return the region for crops of one size; a new one where there is none, or it is `instead_of`."""
        region = self._regions.get(crop_bytes)
        if region is not None and region is not instead_of:
            return region
        return await asyncio.to_thread(self._make_region, crop_bytes, instead_of)

    def _make_region(self, crop_bytes: int, instead_of: SharedRegion | None) -> SharedRegion:
        with self._making:
            # Many requests find out at the same time; the first one does the work.
            region = self._regions.get(crop_bytes)
            if region is None or region is instead_of:
                region = self._regions[crop_bytes] = SharedRegion(crop_bytes, register=self._register)
            return region

    def _register(self, name: str, byte_size: int) -> None:
        """Let the server map a file of `SHARED_MEMORY`; blocks."""
        request = kserve.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=byte_size)
        call = self._begin("SystemSharedMemoryRegister", request.SerializeToString(), self._timeout_s)
        if call.code() is grpc.StatusCode.OK:
            return
        error = self._as_server_error(call.code(), call.details() or "", self._timeout_s)
        if isinstance(error, SharedMemoryError):
            raise SharedMemoryError(
                f"the server at {self.url} does not see this process's shared memory: it runs on another host, in a "
                "container without the host's IPC namespace, or as another user; set `protocol` to 'grpc'"
            ) from error
        raise error


def encode_infer(
    model: ServedModel,
    faces: NDArray[np.uint8],
    region_name: str,
    offset: int,
    *,
    timeout_s: float,
    bulk: bool = False,
) -> bytes:
    """Return an encoded `ModelInferRequest` whose uint8 ``[N, H, W, 3]`` crops lie in a region, `offset` bytes in."""
    request = infer_request(model, faces.shape, timeout_s=timeout_s, bulk=bulk)
    place = request.inputs[0].parameters
    place["shared_memory_region"].string_param = region_name
    place["shared_memory_offset"].int64_param = offset
    place["shared_memory_byte_size"].int64_param = faces.nbytes
    return bytes(request.SerializeToString())


class SharedRegion:
    """Memory shared with the server, given out in places for crops of one size. Safe to use from several threads.

    Places of requests that were given up are used again at once: the server only reads them, and nobody waits for
    what it makes of the bytes.
    """

    def __init__(self, crop_bytes: int, *, register: Callable[[str, int], None]) -> None:
        self.name = f"deepfake-client-{secrets.token_hex(8)}"
        self._crop_bytes = crop_bytes
        self._taken = bytearray(REGION_BYTES // crop_bytes)
        self._lock = threading.Lock()
        path = SHARED_MEMORY / self.name
        try:
            self._memory = _map_new_file(path)
            register(self.name, REGION_BYTES)
        finally:
            path.unlink(missing_ok=True)  # what is mapped stays, on both sides

    @contextmanager
    def holding(self, faces: NDArray[np.uint8]) -> Iterator[int | None]:
        """Copy crops into the region for as long as the context lasts; yields where, None if there is no room."""
        count = len(faces)
        with self._lock:
            start = self._taken.find(bytes(count))
            if start >= 0:
                self._taken[start : start + count] = b"\1" * count
        if start < 0:
            yield None
            return
        try:
            offset = start * self._crop_bytes
            np.frombuffer(self._memory, np.uint8, faces.nbytes, offset).reshape(faces.shape)[:] = faces
            yield offset
        finally:
            self._taken[start : start + count] = bytes(count)


def _map_new_file(path: Path) -> mmap.mmap:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # Reserved now: on a full file system the process would be killed when it writes.
            os.posix_fallocate(file, 0, REGION_BYTES)
            return mmap.mmap(file, REGION_BYTES)
        finally:
            os.close(file)
    except OSError as exc:
        raise SharedMemoryError(
            f"{SHARED_MEMORY} has no room for {REGION_BYTES // 2**20} MB of crops ({exc.strerror}); enlarge it "
            "(Docker's shm size) or set `protocol` to 'grpc'"
        ) from exc
