"""Whether learners compute rightly and fast on this machine's GPU: one table, and the same as JSON.

    python -m benchmarks.gpu_check [--device cuda|cpu] [--quick] [--only SECTION ...] [--out FILE]

`make gpu-check` runs it. It needs no network. With --device cpu the CPU stands for the GPU, which rehearses all but
CUDA itself; its figures say nothing of a GPU. --quick takes some seconds a section. Sections: maths, updates, answers,
learners, speed, memory; those that can't be run here are skipped with a reason.
Status: 0 where nothing that was wanted was missed; 1 where something was, or a section failed; 2 for input that can't
be run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import answers, compiled, maths, runs, updates
from benchmarks.gpu.findings import Finding, Skip, markdown
from hpcrl.devices.accelerator import Accelerator, CudaAccelerator, HostAccelerator
from hpcrl.devices.gpus import own_gpus
from hpcrl.errors import ConfigError, HpcrlError

Sections = Mapping[str, Callable[[], Iterator[Finding]]]


def main(words: Sequence[str] | None = None) -> int:
    """Check; the exit status."""
    arguments = _parser().parse_args(words)
    try:
        accelerator = make_accelerator(arguments.device)
        sections = _sections(arguments, accelerator)
        unknown = set(arguments.only) - set(sections)
        if unknown:
            raise ConfigError(f"--only takes {', '.join(sections)}, got {', '.join(sorted(unknown))}")
    except HpcrlError as error:
        print(f"benchmarks.gpu_check: {error}", file=sys.stderr)
        return error.exit_status
    chosen = {name: section for name, section in sections.items() if not arguments.only or name in arguments.only}
    findings: list[Finding] = []
    facts = _facts(arguments.device, arguments.quick)
    for name, section in chosen.items():
        findings += carry_out(name, section)
        if arguments.out is not None:
            both = {"machine": facts, "findings": [finding.as_json() for finding in findings]}
            arguments.out.write_text(json.dumps(both, indent=1) + "\n")
    print(f"\n{json.dumps(facts)}\n\n{markdown(findings)}")
    return int(any(finding.holds is False for finding in findings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="some seconds a section")
    parser.add_argument("--only", nargs="*", default=[], metavar="SECTION")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    return parser


def make_accelerator(device: str) -> Accelerator:
    """What is checked: the first GPU, or the CPU in its place.

    Raises:
        ConfigError: no GPU that torch could use.
    """
    if device == "cpu":
        return HostAccelerator()
    if not torch.cuda.is_available():
        raise ConfigError(f"torch {torch.__version__} finds no CUDA device; --device cpu rehearses without one")
    seen = own_gpus()
    return CudaAccelerator(0, seen[0].uuid if seen else "")


def _sections(arguments: argparse.Namespace, accelerator: Accelerator) -> Sections:
    seconds = 0.2 if arguments.quick else 3.0
    target = runs.Target(arguments.device)
    return {
        "maths": lambda: maths.check(accelerator),
        "updates": lambda: updates.check(accelerator, seconds, 1 if arguments.quick else 5),
        "answers": lambda: answers.check(accelerator, seconds),
        "learners": lambda: chain(runs.check_algorithms(target), runs.check_layouts(target)),
        "speed": lambda: chain(
            compiled.check(accelerator, seconds, 1 if arguments.quick else None),
            runs.check_speed(target, 1.0 if arguments.quick else 20.0),
        ),
        "memory": lambda: runs.check_memory(target, 20.0 if arguments.quick else 300.0),
    }


def carry_out(name: str, section: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a section; one that says why, where it can't be run or fails."""
    start = time.perf_counter()
    try:
        for finding in section():
            print(markdown([finding]).splitlines()[-1], flush=True)
            yield finding
    except (Skip, ImportError) as reason:
        yield Finding(name, "skipped", None, note=str(reason))
    except Exception as error:
        yield Finding(name, "failed", None, holds=False, note=" ".join(str(error).split())[-400:])
    yield Finding(name, "time for it", time.perf_counter() - start, "s")


def _facts(device: str, quick: bool) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "the CPU in the place of a GPU",
        "gpus": torch.cuda.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "quick": quick,
    }


if __name__ == "__main__":
    sys.exit(main())
