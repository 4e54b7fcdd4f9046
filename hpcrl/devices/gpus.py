"""The GPUs that CUDA shows a process, in its order, told without starting CUDA."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from hpcrl.devices.nvml import Instance, Nvml, PhysicalGpu, open_nvml

#: Drivers from this one on show a process several MIG instances, and other GPUs beside them.
_SHOWS_SEVERAL_INSTANCES = 570


class Gpu(NamedTuple):
    """A GPU, or a MIG instance, that a process may compute on.

    Attributes:
        uuid: begins with GPU- or MIG-.
        name: the product's; of a MIG instance with its profile.
        memory_bytes: that it has; None where the driver doesn't tell.
        doubt: why CUDA may number this process's GPUs otherwise, as what follows "where"; None where it can't.
    """

    uuid: str
    name: str
    memory_bytes: int | None
    doubt: str | None = None


class _Shown(NamedTuple):
    """What has a number of CUDA's: a whole GPU, or an instance of one."""

    gpu: PhysicalGpu
    instance: Instance | None

    @property
    def unit(self) -> PhysicalGpu | Instance:
        return self.instance or self.gpu


def own_gpus(open_library: Callable[[], Nvml | None] = open_nvml) -> tuple[Gpu, ...]:
    """The GPUs that CUDA would show this process, in its order; none without the driver's library. Local.

    Args:
        open_library: see `hpcrl.devices.nvml.open_nvml`.
    """
    if (library := open_library()) is None:
        return ()
    with closing(library):
        return visible_gpus(os.environ, library.gpus(), library.driver_version())


def visible_gpus(
    environ: Mapping[str, str], devices: Sequence[PhysicalGpu], driver: int | None = None
) -> tuple[Gpu, ...]:
    """The GPUs that CUDA would show a process, in the order in which it numbers them.

    The rules are those of the CUDA Programming Guide, "CUDA Environment Variables" (CUDA_VISIBLE_DEVICES and
    CUDA_DEVICE_ORDER), and of the NVIDIA Multi-Instance GPU User Guide, "CUDA Device Enumeration". An entry that
    names nothing ends the list, so "-1" and Slurm's "NoDevFiles" leave none. Two rules are undocumented, and taken
    from how CUDA behaves: a GPU named twice leaves none, and a list has entries of one form, that of its first.

    Args:
        environ: of the process.
        devices: that it may open, in the order of their PCI bus ids.
        driver: first number of the driver's version; before 570, and where it is None, a process is shown one MIG
            instance and nothing beside it, since then one of every GPU instance.
    """
    several = driver is not None and driver >= _SHOWS_SEVERAL_INSTANCES
    numbered = [shown for gpu in devices for shown in _parts(gpu, several)]
    value = environ.get("CUDA_VISIBLE_DEVICES")
    named = numbered if value is None else _listed(value, numbered, devices)
    shown = _one_of_each_gpu_instance(named) if several else _one_instance_alone(named)
    is_choice = len(shown) < len(named)
    doubt = _doubt(environ, devices, numbered, named, is_choice)
    return tuple(Gpu(part.unit.uuid, part.unit.name, part.unit.memory_bytes, doubt) for part in shown)


def _parts(gpu: PhysicalGpu, several: bool) -> list[_Shown]:
    """What of a GPU CUDA numbers: itself, or in MIG mode the first compute instance (of every GPU instance)."""
    if gpu.instances is None:
        return [_Shown(gpu, None)]
    parts = _one_of_each_gpu_instance([_Shown(gpu, instance) for instance in gpu.instances])
    return parts if several else parts[:1]


def _listed(value: str, numbered: Sequence[_Shown], devices: Sequence[PhysicalGpu]) -> list[_Shown]:
    """What CUDA_VISIBLE_DEVICES names, up to its first entry that names nothing."""
    find: Callable[[str], _Shown | None]
    if value.startswith("MIG-"):
        find = _by_instance(devices)
    elif value.startswith("GPU-"):
        find = _by_prefix(devices)
    else:
        find = _by_number(numbered)
    found: list[_Shown] = []
    for entry in value.split(","):
        if (shown := find(entry)) is None:
            break
        if shown in found:
            return []
        found.append(shown)
    return found


def _by_number(numbered: Sequence[_Shown]) -> Callable[[str], _Shown | None]:
    def find(entry: str) -> _Shown | None:
        # As strtoul reads it: what follows the digits does not matter.
        match = re.match(r"\s*\+?([0-9]+)", entry)
        return numbered[number] if match and (number := int(match[1])) < len(numbered) else None

    return find


def _by_prefix(devices: Sequence[PhysicalGpu]) -> Callable[[str], _Shown | None]:
    def find(entry: str) -> _Shown | None:
        found = [gpu for gpu in devices if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
        return next(iter(_parts(found[0], several=False)), None) if len(found) == 1 else None

    return find


def _by_instance(devices: Sequence[PhysicalGpu]) -> Callable[[str], _Shown | None]:
    known: dict[str, _Shown] = {}
    for gpu in devices:
        for instance in gpu.instances or ():
            shown = _Shown(gpu, instance)
            known[instance.uuid] = shown
            # Drivers before 470 know no other name.
            known[f"MIG-{gpu.uuid}/{instance.gpu_instance}/{instance.compute_instance}"] = shown
    return known.get


def _one_of_each_gpu_instance(named: Sequence[_Shown]) -> list[_Shown]:
    first: dict[tuple[str, int | None], _Shown] = {}
    for shown in named:
        first.setdefault((shown.gpu.uuid, shown.instance.gpu_instance if shown.instance else None), shown)
    return list(first.values())


def _one_instance_alone(named: Sequence[_Shown]) -> list[_Shown]:
    instances = [shown for shown in named if shown.instance is not None]
    return instances[:1] or list(named)


def _doubt(
    environ: Mapping[str, str],
    devices: Sequence[PhysicalGpu],
    numbered: Sequence[_Shown],
    named: Sequence[_Shown],
    is_choice: bool,
) -> str | None:
    """What the documents leave open, as what follows "where".

    Args:
        environ: of the process.
        devices: that it may open.
        numbered: what has a number of CUDA's.
        named: what CUDA_VISIBLE_DEVICES names, everything where it is not set.
        is_choice: CUDA shows less than that.
    """
    value = environ.get("CUDA_VISIBLE_DEVICES", "")
    kinds = sorted({gpu.name for gpu in devices})
    by_number = not value.startswith(("GPU-", "MIG-"))
    if by_number and len(kinds) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return f"GPUs are of different kinds ({', '.join(kinds)}) and CUDA_DEVICE_ORDER is not PCI_BUS_ID"
    candidates = numbered if by_number else named
    has_instance = len(numbered) > 1 and any(shown.instance is not None for shown in candidates)
    if is_choice or (has_instance and not value.startswith("MIG-")):
        return "CUDA chooses among MIG instances, as CUDA_VISIBLE_DEVICES does not name one for each rank"
    return None
