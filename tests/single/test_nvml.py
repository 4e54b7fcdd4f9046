"""The binding of the driver's library, against functions with the types of nvml.h that are called through C."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass, field
from typing import Any

import pytest

from hpcrl.devices.nvml import Instance, Nvml, PhysicalGpu, Usage, open_nvml

_NOT_SUPPORTED, _NOT_FOUND, _NO_PERMISSION = 3, 6, 4
#: Handles are pointers, wider than an int.
_FIRST_HANDLE = 0x7F00_0000_1000


@dataclass
class Part:
    """What a handle stands for."""

    uuid: str
    name: str
    total: int
    used: int
    busy: int | None = None
    ids: tuple[int, int] | None = None


@dataclass
class Card(Part):
    """A GPU: its bus id, whether it may be opened, and its instances in MIG mode (None is an empty place)."""

    bus: str = "00000000:01:00.0"
    is_allowed: bool = True
    places: Sequence[Part | None] | None = None


@dataclass
class Driver:
    """Stands for the loaded library; functions in `codes` return that instead of doing something."""

    cards: Sequence[Card]
    version: str = "570.86.15"
    codes: Mapping[str, int] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    is_open: bool = False

    def __post_init__(self) -> None:
        every = [part for card in self.cards for part in (card, *(card.places or ())) if part is not None]
        self._parts = {_FIRST_HANDLE + place: part for place, part in enumerate(every)}
        uint, handle = POINTER(c_uint), POINTER(c_void_p)
        functions: dict[str, tuple[Callable[..., int], tuple[Any, ...]]] = {
            "nvmlInit_v2": (lambda: self._set_open(True), ()),
            "nvmlShutdown": (lambda: self._set_open(False), ()),
            "nvmlSystemGetDriverVersion": (lambda text, size: self._text(self.version, text, size), (c_void_p, c_uint)),
            "nvmlDeviceGetCount_v2": (lambda out: _number(len(self.cards), out), (uint,)),
            "nvmlDeviceGetHandleByIndex_v2": (self._by_index, (c_uint, handle)),
            "nvmlDeviceGetHandleByUUID": (self._by_uuid, (c_char_p, handle)),
            "nvmlDeviceGetUUID": (self._of(lambda p, *to: self._text(p.uuid, *to)), (c_void_p, c_void_p, c_uint)),
            "nvmlDeviceGetName": (self._of(lambda p, *to: self._text(p.name, *to)), (c_void_p, c_void_p, c_uint)),
            "nvmlDeviceGetMemoryInfo": (self._of(_memory), (c_void_p, c_void_p)),
            "nvmlDeviceGetUtilizationRates": (self._of(_rates), (c_void_p, c_void_p)),
            "nvmlDeviceGetPciInfo_v3": (self._of(_pci), (c_void_p, c_void_p)),
            "nvmlDeviceGetMigMode": (self._of(_mig_mode), (c_void_p, uint, uint)),
            "nvmlDeviceGetMaxMigDeviceCount": (self._of(_places), (c_void_p, uint)),
            "nvmlDeviceGetMigDeviceHandleByIndex": (self._place, (c_void_p, c_uint, handle)),
            "nvmlDeviceGetGpuInstanceId": (self._of(lambda p, out: _number(p.ids[0], out)), (c_void_p, uint)),
            "nvmlDeviceGetComputeInstanceId": (self._of(lambda p, out: _number(p.ids[1], out)), (c_void_p, uint)),
        }
        for name in functions.keys() - self.missing:
            function, types = functions[name]
            if (code := self.codes.get(name)) is not None:
                function = _always(code)
            setattr(self, name, CFUNCTYPE(c_int, *types)(function))
        self.names = frozenset(functions)

    def _set_open(self, is_open: bool) -> int:
        self.is_open = is_open
        return 0

    def _text(self, text: str, out: int, size: int) -> int:
        assert len(text) < size
        ctypes.memmove(out, text.encode() + b"\0", len(text) + 1)
        return 0

    def _of(self, function: Callable[..., int]) -> Callable[..., int]:
        return lambda handle, *arguments: function(self._parts[handle], *arguments)

    def _by_index(self, index: int, out: Any) -> int:
        card = self.cards[index]
        return self._give(card, out) if card.is_allowed else _NO_PERMISSION

    def _by_uuid(self, uuid: bytes, out: Any) -> int:
        found = next((part for part in self._parts.values() if part.uuid == uuid.decode()), None)
        return self._give(found, out)

    def _place(self, handle: int, index: int, out: Any) -> int:
        card = self._parts[handle]
        assert isinstance(card, Card) and card.places is not None
        return self._give(card.places[index], out)

    def _give(self, part: Part | None, out: Any) -> int:
        if part is None:
            return _NOT_FOUND
        out[0] = next(handle for handle, known in self._parts.items() if known is part)
        return 0


def _always(code: int) -> Callable[..., int]:
    return lambda *_arguments: code


def _number(number: int, out: Any) -> int:
    out[0] = number
    return 0


def _write(out: int, layout: str, *values: Any) -> int:
    ctypes.memmove(out, struct.pack(layout, *values), struct.calcsize(layout))
    return 0


def _memory(part: Part, out: int) -> int:
    return _write(out, "QQQ", part.total, part.total - part.used, part.used)


def _rates(part: Part, out: int) -> int:
    return _NOT_SUPPORTED if part.busy is None else _write(out, "II", part.busy, 99)


def _pci(card: Card, out: int) -> int:
    return _write(out, "16s5I32s", card.bus[4:].encode(), 1, 2, 3, 4, 5, card.bus.encode())


def _mig_mode(card: Card, current: Any, pending: Any) -> int:
    pending[0] = 1
    return _number(0 if card.places is None else 1, current)


def _places(card: Card, out: Any) -> int:
    return _number(len(card.places or ()), out)


GB = 1 << 30
H100 = "NVIDIA H100 80GB HBM3"
WHOLE = Card("GPU-1111", H100, 80 * GB, 3 * GB, busy=42, bus="00000000:C1:00.0")
SMALL = Part("MIG-aaaa", f"{H100} MIG 1g.10gb", 10 * GB, GB, ids=(7, 0))
LARGE = Part("MIG-bbbb", f"{H100} MIG 3g.40gb", 40 * GB, GB, ids=(2, 1))
CUT = Card("GPU-2222", H100, 80 * GB, 0, bus="00000000:4B:00.0", places=[SMALL, None, LARGE, None])
ALL = (
    PhysicalGpu(
        "GPU-2222",
        H100,
        80 * GB,
        "00000000:4B:00.0",
        (
            Instance("MIG-aaaa", f"{H100} MIG 1g.10gb", 10 * GB, 7, 0),
            Instance("MIG-bbbb", f"{H100} MIG 3g.40gb", 40 * GB, 2, 1),
        ),
    ),
    PhysicalGpu("GPU-1111", H100, 80 * GB, "00000000:C1:00.0"),
)
NAMES = sorted(Driver([]).names)


def opened(driver: Driver) -> Nvml:
    library = open_nvml(lambda _name: driver)
    assert library is not None
    return library


def test_gpus_are_told_in_the_order_of_their_bus_ids() -> None:
    assert opened(Driver([WHOLE, CUT])).gpus() == ALL
    assert opened(Driver([CUT, WHOLE])).gpus() == ALL


def test_a_gpu_that_may_not_be_opened_is_left_out() -> None:
    forbidden = Card("GPU-3333", H100, GB, 0, is_allowed=False)
    assert opened(Driver([forbidden, WHOLE])).gpus() == ALL[1:]
    assert opened(Driver([])).gpus() == ()


def test_mig_mode_without_instances_is_not_the_same_as_no_mig_mode() -> None:
    empty = Card("GPU-4444", H100, GB, 0, places=[None, None])
    found = opened(Driver([empty, WHOLE])).gpus()
    assert [gpu.instances for gpu in found] == [(), None]


def test_usage_is_told_by_uuid_and_of_instances_without_utilisation() -> None:
    library = opened(Driver([WHOLE, CUT]))
    assert library.usage("GPU-1111") == Usage(42, 3 * GB)
    assert library.usage("MIG-bbbb") == Usage(None, GB)
    assert library.usage("GPU-9999") == Usage(None, None)


@pytest.mark.parametrize(
    ("version", "number"), [("570.86.15", 570), ("450.80.02", 450), ("610", 610), ("", None), ("r570", None)]
)
def test_driver_version(version: str, number: int | None) -> None:
    assert opened(Driver([], version)).driver_version() == number


def test_the_library_is_opened_and_closed_once() -> None:
    driver, asked = Driver([WHOLE]), []

    def load(name: str) -> Driver:
        asked.append(name)
        return driver

    library = open_nvml(load)
    assert library is not None and asked == ["libnvidia-ml.so.1"] and driver.is_open
    library.close()
    assert not driver.is_open


def test_without_library_or_driver_there_is_none() -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    assert open_nvml(refuse) is None
    assert open_nvml(lambda _name: ctypes.CDLL(None)) is None
    assert open_nvml(lambda _name: Driver([WHOLE], codes={"nvmlInit_v2": 9})) is None
    assert open_nvml(lambda _name: Driver([WHOLE], missing=frozenset({"nvmlInit_v2"}))) is None


#: What is left of the list where a function refuses.
LOST: dict[str, tuple[PhysicalGpu, ...]] = {
    "nvmlDeviceGetCount_v2": (),
    "nvmlDeviceGetHandleByIndex_v2": (),
    "nvmlDeviceGetUUID": (),
    "nvmlDeviceGetName": (),
    "nvmlDeviceGetMigMode": tuple(gpu._replace(instances=None) for gpu in ALL),
    "nvmlDeviceGetPciInfo_v3": tuple(gpu._replace(pci_bus_id="") for gpu in ALL),
    "nvmlDeviceGetMemoryInfo": tuple(
        gpu._replace(
            memory_bytes=None,
            instances=gpu.instances and tuple(instance._replace(memory_bytes=None) for instance in gpu.instances),
        )
        for gpu in ALL
    ),
} | {
    name: (ALL[0]._replace(instances=()), ALL[1])
    for name in (
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
        "nvmlDeviceGetGpuInstanceId",
        "nvmlDeviceGetComputeInstanceId",
    )
}


@pytest.mark.parametrize("is_missing", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "nvmlInit_v2"])
def test_what_a_function_refuses_to_tell_is_absent(name: str, is_missing: bool) -> None:
    refusing: dict[str, Any] = {"missing": frozenset({name})} if is_missing else {"codes": {name: 999}}
    library = opened(Driver([CUT, WHOLE], **refusing))
    assert library.gpus() == LOST.get(name, ALL)
    no_busy = name in ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetHandleByUUID")
    no_used = name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetHandleByUUID")
    assert library.usage("GPU-1111") == Usage(None if no_busy else 42, None if no_used else 3 * GB)
    assert library.driver_version() == (None if name == "nvmlSystemGetDriverVersion" else 570)
    library.close()
