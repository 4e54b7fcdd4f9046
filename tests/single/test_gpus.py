"""Which GPUs CUDA shows a process, by its two variables."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.devices.gpus import Gpu, own_gpus, visible_gpus
from hpcrl.devices.nvml import Instance, Nvml, PhysicalGpu

GB = 1 << 30
OLD, NEW = 535, 570


def card(uuid: str, name: str = "A100", instances: Sequence[Instance] | None = None) -> PhysicalGpu:
    return PhysicalGpu(uuid, name, 40 * GB, "", None if instances is None else tuple(instances))


def instance(uuid: str, gpu_instance: int, compute_instance: int = 0) -> Instance:
    return Instance(uuid, "A100 MIG 1g.5gb", 5 * GB, gpu_instance, compute_instance)


#: UUIDs two of which begin alike.
FOUR = [card("GPU-8932f937"), card("GPU-8932aaaa"), card("GPU-12345678"), card("GPU-ffffffff")]
#: Two whole GPUs, and between them one that is cut into two GPU instances, the first of them once more.
CUT = card("GPU-cccc", instances=[instance("MIG-p", 3, 0), instance("MIG-q", 3, 1), instance("MIG-r", 5)])
MIXED = [card("GPU-aaaa"), CUT, card("GPU-bbbb")]


def shown(
    value: str | None, devices: Sequence[PhysicalGpu] = FOUR, driver: int | None = None, order: str | None = None
) -> tuple[Gpu, ...]:
    variables = {"CUDA_VISIBLE_DEVICES": value, "CUDA_DEVICE_ORDER": order}
    return visible_gpus({name: text for name, text in variables.items() if text is not None}, devices, driver)


def uuids(
    value: str | None, devices: Sequence[PhysicalGpu] = FOUR, driver: int | None = None, order: str | None = None
) -> list[str]:
    return [gpu.uuid for gpu in shown(value, devices, driver, order)]


@pytest.mark.parametrize(
    ("value", "places"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [0]),
        ("2,1", [2, 1]),
        ("0,2,-1,1", [0, 2]),
        ("0,4,1", [0]),
        ("1,,2", [1]),
        (" 1, 2", [1, 2]),
        ("+3,01", [3, 1]),
        ("1gpu2,2ampere", [1, 2]),
        ("99999999999999999999", []),
        # CUDA finds no device at all where one is named twice.
        ("0,0", []),
        ("0,1,2,1", []),
        ("0,-1,0", [0]),
        ("GPU-12345678", [2]),
        ("GPU-f,GPU-1,GPU-89", [3, 2]),
        ("GPU-8932f,GPU-8932a", [0, 1]),
        ("GPU-", []),
        ("GPU-12345678,GPU-1", []),
        ("GPU-12345678x", []),
        ("GPU-1,GPU-00,GPU-f", [2]),
        ("GPU-1,0", [2]),
        ("0,GPU-1", [0]),
        ("gpu-12345678", []),
        ("12345678", []),
        ("MIG-12345678", []),
    ],
)
@pytest.mark.parametrize("driver", [None, OLD, NEW])
def test_the_variable_chooses_and_orders(value: str | None, places: list[int], driver: int | None) -> None:
    assert uuids(value, driver=driver) == [FOUR[place].uuid for place in places]


def test_a_prefix_without_digits_is_enough_for_the_only_gpu() -> None:
    assert uuids("GPU-", FOUR[:1]) == uuids("GPU-,", FOUR[:1]) == ["GPU-8932f937"]


def test_name_and_memory_are_the_devices() -> None:
    assert shown("2") == (Gpu("GPU-12345678", "A100", 40 * GB),)
    assert shown("MIG-r", MIXED) == (Gpu("MIG-r", "A100 MIG 1g.5gb", 5 * GB),)


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        # Before driver 570: one instance, and nothing beside it.
        (None, ["MIG-p"], ["GPU-aaaa", "MIG-p", "MIG-r", "GPU-bbbb"]),
        ("0", ["GPU-aaaa"], ["GPU-aaaa"]),
        ("1", ["MIG-p"], ["MIG-p"]),
        ("2", ["GPU-bbbb"], ["MIG-r"]),
        ("3,2,1,0", [], ["GPU-bbbb", "MIG-r", "MIG-p", "GPU-aaaa"]),
        ("0,1", ["MIG-p"], ["GPU-aaaa", "MIG-p"]),
        ("GPU-bbbb", ["GPU-bbbb"], ["GPU-bbbb"]),
        ("GPU-cccc", ["MIG-p"], ["MIG-p"]),
        ("MIG-q", ["MIG-q"], ["MIG-q"]),
        ("MIG-r,MIG-q", ["MIG-r"], ["MIG-r", "MIG-q"]),
        ("MIG-q,MIG-p,MIG-r", ["MIG-q"], ["MIG-q", "MIG-r"]),
        ("MIG-r,MIG-r", [], []),
        ("MIG-x,MIG-r", [], []),
        ("MIG-", [], []),
        ("MIG-GPU-cccc/5/0", ["MIG-r"], ["MIG-r"]),
        ("MIG-GPU-cccc/3/1", ["MIG-q"], ["MIG-q"]),
        ("MIG-GPU-cccc/4/0", [], []),
        ("MIG-GPU-aaaa/3/0", [], []),
    ],
)
def test_instances(value: str | None, old: list[str], new: list[str]) -> None:
    assert uuids(value, MIXED, OLD) == uuids(value, MIXED, None) == old
    assert uuids(value, MIXED, NEW) == uuids(value, MIXED, 610) == new


@pytest.mark.parametrize("driver", [OLD, NEW])
def test_mig_mode_without_instances_shows_nothing(driver: int) -> None:
    devices = [card("GPU-empty", instances=[]), card("GPU-full")]
    assert uuids(None, devices, driver) == ["GPU-full"]
    assert uuids("GPU-empty", devices, driver) == []


KINDS = [card("GPU-a", "T4"), card("GPU-b", "A100"), card("GPU-c", "T4")]


@pytest.mark.parametrize(
    ("value", "order", "is_sure"),
    [
        (None, None, False),
        (None, "FASTEST_FIRST", False),
        ("1", None, False),
        ("1", "pci_bus_id", False),
        (None, "PCI_BUS_ID", True),
        ("1,0", "PCI_BUS_ID", True),
        ("GPU-b,GPU-a", None, True),
    ],
)
def test_numbers_of_different_kinds_are_sure_in_the_order_of_the_bus_alone(
    value: str | None, order: str | None, is_sure: bool
) -> None:
    doubt = "GPUs are of different kinds (A100, T4) and CUDA_DEVICE_ORDER is not PCI_BUS_ID"
    assert {gpu.doubt for gpu in shown(value, KINDS, order=order)} == {None if is_sure else doubt}


@pytest.mark.parametrize("value", [None, "2,0", "GPU-1"])
@pytest.mark.parametrize("order", [None, "FASTEST_FIRST", "PCI_BUS_ID"])
def test_numbers_of_one_kind_are_sure(value: str | None, order: str | None) -> None:
    assert {gpu.doubt for gpu in shown(value, order=order)} == {None}


@pytest.mark.parametrize(
    ("value", "devices", "driver", "is_sure"),
    [
        (None, MIXED, OLD, False),
        (None, MIXED, NEW, False),
        ("0", MIXED, NEW, False),
        ("GPU-cccc", MIXED, NEW, False),
        ("GPU-bbbb", MIXED, OLD, True),
        ("MIG-r,MIG-q", MIXED, OLD, False),
        ("MIG-r,MIG-q", MIXED, NEW, True),
        ("MIG-q,MIG-p", MIXED, NEW, False),
        ("MIG-r", MIXED, OLD, True),
        (None, [card("GPU-x", instances=[instance("MIG-only", 1)])], OLD, True),
        ("0", [card("GPU-x", instances=[instance("MIG-only", 1)])], NEW, True),
    ],
)
def test_instances_are_sure_where_each_is_named(
    value: str | None, devices: Sequence[PhysicalGpu], driver: int, is_sure: bool
) -> None:
    doubts = [gpu.doubt for gpu in shown(value, devices, driver)]
    assert doubts and all((doubt is None) == is_sure for doubt in doubts)


@st.composite
def machines(draw: st.DrawFn) -> list[PhysicalGpu]:
    """Up to five GPUs, some cut into instances; no UUID twice."""
    number = draw(st.integers(0, 5))
    devices = []
    for place in range(number):
        ids = draw(st.none() | st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=4, unique=True))
        parts = None if ids is None else [instance(f"MIG-{place}{index}", *pair) for index, pair in enumerate(ids)]
        devices.append(card(f"GPU-{place}", draw(st.sampled_from(["T4", "A100"])), parts))
    return devices


@settings(max_examples=300, deadline=None)
@given(machines(), st.data())
def test_properties_of_what_is_shown(devices: list[PhysicalGpu], data: st.DataObject) -> None:
    known = [gpu.uuid for gpu in devices] + [part.uuid for gpu in devices for part in gpu.instances or ()]
    entries = st.sampled_from([*known, "GPU-", "MIG-GPU-0/1/1", "x", "", *map(str, range(-1, 7))])
    value = data.draw(st.none() | st.lists(entries, max_size=6).map(",".join))
    for driver in (OLD, NEW):
        found = uuids(value, devices, driver)
        assert len(set(found)) == len(found) and set(found) <= set(known)
        parts = [uuid for uuid in found if uuid.startswith("MIG-")]
        whole = {gpu.uuid for gpu in devices if gpu.instances is None}
        assert set(found) - set(parts) <= whole
        if driver == OLD and parts:
            assert len(found) == 1
    # What follows an entry that names nothing does not matter, nor how a number is written.
    if value is not None:
        assert uuids(value, devices, NEW) == uuids(f"{value},none,0", devices, NEW)


@given(st.lists(st.text("ab01", min_size=4, max_size=6), min_size=1, max_size=6, unique=True), st.data())
def test_the_shortest_prefix_that_is_unique_names_a_gpu(names: list[str], data: st.DataObject) -> None:
    devices = [card(f"GPU-{name}") for name in names]
    wanted = data.draw(st.sampled_from(devices)).uuid
    length = data.draw(st.integers(4, len(wanted)))
    alike = [gpu.uuid for gpu in devices if gpu.uuid.startswith(wanted[:length])]
    assert uuids(wanted[:length], devices) == (alike if len(alike) == 1 else [])


class FakeNvml(Nvml):
    """Says what it is told to, until it is closed."""

    def __init__(self, devices: Sequence[PhysicalGpu], driver: int) -> None:
        self._devices, self._driver, self.is_open = tuple(devices), driver, True

    def gpus(self) -> tuple[PhysicalGpu, ...]:
        assert self.is_open
        return self._devices

    def driver_version(self) -> int | None:
        assert self.is_open
        return self._driver

    def close(self) -> None:
        self.is_open = False


def test_own_gpus_join_variables_devices_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    library = FakeNvml(MIXED, NEW)
    assert [gpu.uuid for gpu in own_gpus(lambda: library)] == ["MIG-r"]
    assert not library.is_open
    assert [gpu.uuid for gpu in own_gpus(lambda: FakeNvml(MIXED, OLD))] == ["GPU-bbbb"]
    assert own_gpus(lambda: None) == ()


def test_own_gpus_of_this_machine_are_told_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in own_gpus())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert own_gpus() == ()
