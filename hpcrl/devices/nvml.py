"""NVIDIA's management library: which GPUs the driver knows, and how busy they are, without a CUDA context.

Names and types are those of nvml.h (NVML API Reference Guide). What the library refuses to tell is absent or None.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
#: NVML_DEVICE_UUID_V2_BUFFER_SIZE and NVML_DEVICE_NAME_V2_BUFFER_SIZE; no text of the library is longer.
_TEXT_BYTES = 96


class Instance(NamedTuple):
    """A part of a GPU in MIG mode, as large as a compute instance.

    Attributes:
        uuid: begins with MIG-.
        name: of the GPU and the profile.
        memory_bytes: that the part has; None where the library doesn't tell.
        gpu_instance, compute_instance: the library's ids; compute instances of one GPU instance share its memory.
    """

    uuid: str
    name: str
    memory_bytes: int | None
    gpu_instance: int
    compute_instance: int


class PhysicalGpu(NamedTuple):
    """A GPU that this process may open.

    Attributes:
        uuid: begins with GPU-.
        name: the product's.
        memory_bytes: that it has; None where the library doesn't tell.
        pci_bus_id: domain:bus:device.function; empty for a GPU that is on no PCI bus.
        instances: those that this process may open, in the library's order; None where it is not in MIG mode.
    """

    uuid: str
    name: str
    memory_bytes: int | None
    pci_bus_id: str
    instances: tuple[Instance, ...] | None = None


class Usage(NamedTuple):
    """What a GPU does now; each None where the library doesn't tell.

    Attributes:
        busy_percent: share of the driver's last sample period in which a kernel ran; of a MIG instance always None.
        used_bytes: memory in use by anybody, the driver included.
    """

    busy_percent: int | None
    used_bytes: int | None


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _PciInfo(ctypes.Structure):
    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


class Nvml:
    """The library, initialised until `close`.

    Args:
        library: as ctypes loads it.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def close(self) -> None:
        """Let go of the driver. Local."""
        self._call("nvmlShutdown")

    def driver_version(self) -> int | None:
        """The first number of the driver's version; None where it doesn't tell. Local."""
        first = (self._text("nvmlSystemGetDriverVersion") or "").partition(".")[0]
        return int(first) if first.isdecimal() else None

    def gpus(self) -> tuple[PhysicalGpu, ...]:
        """The GPUs that this process may open, in the order of their PCI bus ids. Local."""
        number = self._number("nvmlDeviceGetCount_v2") or 0
        handles = (self._handle("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index)) for index in range(number))
        found = [gpu for handle in handles if handle and (gpu := self._gpu(handle))]
        return tuple(sorted(found, key=lambda gpu: gpu.pci_bus_id))

    def usage(self, uuid: str) -> Usage:
        """How busy a GPU or MIG instance is. Local."""
        handle = self._handle("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()))
        if handle is None:
            return Usage(None, None)
        rates = _Utilisation()
        is_told = self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(rates))
        memory = self._memory(handle)
        return Usage(rates.gpu if is_told else None, memory.used if memory else None)

    def _gpu(self, handle: ctypes.c_void_p) -> PhysicalGpu | None:
        uuid, name = self._text("nvmlDeviceGetUUID", handle), self._text("nvmlDeviceGetName", handle)
        if uuid is None or name is None:
            return None
        memory, pci = self._memory(handle), _PciInfo()
        bus_id = pci.bus_id.decode() if self._call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci)) else ""
        instances = tuple(self._instances(handle)) if self._is_in_mig_mode(handle) else None
        return PhysicalGpu(uuid, name, memory.total if memory else None, bus_id, instances)

    def _is_in_mig_mode(self, handle: ctypes.c_void_p) -> bool:
        current, pending = ctypes.c_uint(), ctypes.c_uint()
        is_told = self._call("nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending))
        return is_told and current.value == 1

    def _instances(self, gpu: ctypes.c_void_p) -> Iterator[Instance]:
        for index in range(self._number("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
            handle = self._handle("nvmlDeviceGetMigDeviceHandleByIndex", gpu, ctypes.c_uint(index))
            if handle is None:
                continue
            uuid, name = self._text("nvmlDeviceGetUUID", handle), self._text("nvmlDeviceGetName", handle)
            gpu_instance = self._number("nvmlDeviceGetGpuInstanceId", handle)
            compute_instance = self._number("nvmlDeviceGetComputeInstanceId", handle)
            if uuid is None or name is None or gpu_instance is None or compute_instance is None:
                continue
            memory = self._memory(handle)
            yield Instance(uuid, name, memory.total if memory else None, gpu_instance, compute_instance)

    def _memory(self, handle: ctypes.c_void_p) -> _Memory | None:
        memory = _Memory()
        return memory if self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)) else None

    def _handle(self, name: str, *arguments: Any) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        return handle if self._call(name, *arguments, ctypes.byref(handle)) else None

    def _number(self, name: str, *arguments: Any) -> int | None:
        number = ctypes.c_uint()
        return number.value if self._call(name, *arguments, ctypes.byref(number)) else None

    def _text(self, name: str, *arguments: Any) -> str | None:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        is_told = self._call(name, *arguments, text, ctypes.c_uint(_TEXT_BYTES))
        return text.value.decode(errors="replace") if is_told else None

    def _call(self, name: str, *arguments: Any) -> bool:
        """Whether the function is there and succeeds; older libraries lack some."""
        function = getattr(self._library, name, None)
        return function is not None and function(*arguments) == _SUCCESS


def open_nvml(load: Callable[[str], Any] = ctypes.CDLL) -> Nvml | None:
    """The library, initialised; None where there is none, or no driver that answers. Local.

    Args:
        load: loads a shared library by name, or raises OSError.
    """
    try:
        library = load(_LIBRARY)
    except OSError:
        return None
    initialise = getattr(library, "nvmlInit_v2", None)
    return Nvml(library) if initialise is not None and initialise() == _SUCCESS else None
