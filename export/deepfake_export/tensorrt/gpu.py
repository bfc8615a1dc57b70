"""The GPU of this machine, through the CUDA driver's own library: what it is, and memory for one engine's tensors.

`libcuda` comes with the driver, so this works in every container that sees a GPU, without PyTorch, cupy or
nvidia-smi. Function names: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass

from deepfake_preprocess.errors import EngineError

DRIVER_LIBRARY = "libcuda.so.1"
RUNTIME_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU that CUDA sees.

    Attributes:
        name: as the driver gives it.
        compute_capability: for example ``8.9``.
    """

    name: str
    compute_capability: str


def find_gpu() -> Gpu | None:
    """Return the first GPU that CUDA sees, or None where there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    _check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    name = ctypes.create_string_buffer(256)
    _check(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        _check(cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
        capability.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(capability))


def cuda_version() -> str:
    """Return the version of the CUDA runtime, else of what the driver runs, as ``13.0``; empty where neither is."""
    version = ctypes.c_int()
    for library in RUNTIME_LIBRARIES:
        with contextlib.suppress(OSError, AttributeError):
            if not ctypes.CDLL(library).cudaRuntimeGetVersion(ctypes.byref(version)):
                return _dotted(version.value)
    with contextlib.suppress(OSError, AttributeError):
        if not ctypes.CDLL(DRIVER_LIBRARY).cuDriverGetVersion(ctypes.byref(version)):
            return _dotted(version.value)
    return ""


class GpuMemory:
    """Memory on the first GPU, in its primary context, and a stream to compute on; both end with `close`.

    Attributes:
        stream: handle of a stream of its own: on the default one, TensorRT waits for the GPU more often.
    """

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL(DRIVER_LIBRARY)
        self._pointers: list[int] = []
        context, device = ctypes.c_void_p(), ctypes.c_int()
        _check(self._cuda.cuInit(0), "cuInit")
        _check(self._cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
        _check(self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
        _check(self._cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        stream = ctypes.c_void_p()
        _check(self._cuda.cuStreamCreate(ctypes.byref(stream), _STREAM_NON_BLOCKING), "cuStreamCreate")
        self.stream: int = stream.value or 0

    def allocate(self, size_bytes: int) -> int:
        """Return the address of `size_bytes` on the GPU."""
        pointer = ctypes.c_uint64()
        _check(self._cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size_bytes)), "cuMemAlloc")
        self._pointers.append(pointer.value)
        return pointer.value

    def upload(self, address: int, host: int, size_bytes: int) -> None:
        """Copy `size_bytes` from the host's address to the GPU's, and wait until they are there."""
        source = ctypes.c_void_p(host)
        _check(self._cuda.cuMemcpyHtoD_v2(ctypes.c_uint64(address), source, ctypes.c_size_t(size_bytes)), "upload")
        # The copy itself may return earlier, and the stream does not wait for it.
        self.synchronize()

    def download(self, host: int, address: int, size_bytes: int) -> None:
        """Copy `size_bytes` from the GPU's address to the host's."""
        target = ctypes.c_void_p(host)
        _check(self._cuda.cuMemcpyDtoH_v2(target, ctypes.c_uint64(address), ctypes.c_size_t(size_bytes)), "download")

    def synchronize(self) -> None:
        """Wait for everything that was started on the GPU."""
        _check(self._cuda.cuCtxSynchronize(), "cuCtxSynchronize")

    def close(self) -> None:
        """Free all memory and the stream. The context stays: TensorRT works in it, too."""
        while self._pointers:
            self._cuda.cuMemFree_v2(ctypes.c_uint64(self._pointers.pop()))
        if self.stream:
            self._cuda.cuStreamDestroy_v2(ctypes.c_void_p(self.stream))
            self.stream = 0


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _check(code: int, what: str) -> None:
    if code:
        raise EngineError(f"the CUDA driver refused {what} (error {code}); see whether nvidia-smi works here")
