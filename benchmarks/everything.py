"""The short form of all benchmarks, within half an hour on two cores: `make bench`.

    python -m benchmarks.everything [--out bench] [--only PART...] [--minutes 30] [--peers-python PYTHON...]

Parts: `machine` (hpcrl bench), `throughput`, `scaling`, `sums`, `paths`, `plan` (predictions against runs) and `peers`.
Each leaves PART.md in the folder, PART.jsonl where it prints lines of JSON, and its plot; README.md there has all
tables and is printed at the end, the comparison with the peers last. What is quoted in docs comes from longer runs of
the same programs, see `benchmarks/results`. A part that fails, or for which no time is left, says so in its place.
Status: 0 where all parts were measured, 1 where one was not, 128 + the number of the signal that stopped it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import CommandFailed
from benchmarks.steps import Stop, Stopped, run
from hpcrl.cluster.affinity import usable_cpus

_HPCRL = (sys.executable, "-m", "hpcrl")
#: Tables of `benchmarks.throughput` that the peers' part has nothing of.
_TABLES = ("algorithms", "python-env", "transport", "limits")
_LAYOUTS = ("colocated", "split")


@dataclass(frozen=True)
class Part:
    """Commands, one after the other; what they print is the part.

    Attributes:
        title: of its section.
        minutes: that it may take.
        pictures: files in the folder that it draws.
    """

    name: str
    title: str
    minutes: float
    commands: tuple[tuple[str, ...], ...]
    pictures: tuple[str, ...] = ()


def parts(out: Path, peers_python: Sequence[str] = ()) -> list[Part]:
    """All of them, the peers last."""
    peers = ("--peers-python", *peers_python) if peers_python else ()
    short = ("--rounds", "1", "--minutes", "11", "--seconds", "6", "--env-steps", "100000")
    return [
        Part("machine", "What bounds this machine", 3, ((*_HPCRL, "bench", "--seconds", "2", "--repeats", "1"),)),
        Part(
            "throughput",
            "End to end",
            7,
            (_module("throughput", "--rounds", "1", "--env-steps", "100000", "--only", *_TABLES),),
        ),
        Part("scaling", "Strong and weak scaling", 6, _scaling(out), ("scaling.png",)),
        Part("sums", "Sums of gradients", 4, (_module("allreduce", "--ranks", "2", "3", "--rounds", "20"),)),
        Part("paths", "Unrolls and weights on their way", 3, (_module("paths", "--rounds", "30"),)),
        Part("plan", "Predictions against runs", 4, _plan()),
        Part(
            "peers",
            "Against other libraries",
            13,
            (_module("peers_table", *short, "-o", str(out / "peers.md"), *peers),),
        ),
    ]


def _module(name: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{name}", *words)


def _scaling(out: Path) -> tuple[tuple[str, ...], ...]:
    """Every number of ranks that has cores, and one more; both modes, ranks that do both and ranks that do one."""
    lines = str(out / "scaling.jsonl")
    ranks = sorted({1, 2, *(2**power for power in range(2, 10) if 2**power <= len(usable_cpus())), 3})
    repeats = ("--repeats", "2", "--out", lines)
    measured = [
        _module("scaling", "--mode", mode, "--ranks", str(number), *work, *repeats, "--", "--placement", placement)
        for placement in _LAYOUTS
        for mode, work in (("strong", ("--env-steps", "150000")), ("weak", ("--env-steps-per-rank", "75000")))
        for number in ranks
    ]
    return (*measured, _module("plot", lines, "-o", str(out / "scaling.png")))


def _plan() -> tuple[tuple[str, ...], ...]:
    return tuple(
        _module("plan_check", "--seconds", "4", "--repeats", "1", "--only", only)
        for only in ("a2c sleeping, 4", "impala sleeping, 4", "a3c sleeping, 4", "a2c CartPole", "impala CartPole")
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder of what was measured")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[part.name for part in parts(Path())])
    parser.add_argument("--minutes", type=float, default=30.0, help="after which nothing more is begun")
    parser.add_argument("--peers-python", nargs="+", default=(), metavar="PYTHON", help="interpreters with peers")
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [
        part
        for part in parts(arguments.out, arguments.peers_python)
        if arguments.only is None or part.name in arguments.only
    ]
    for part in chosen:
        # What is in the file would not be measured again.
        (arguments.out / f"{part.name}.jsonl").unlink(missing_ok=True)
    stop = Stop()
    stop.install()
    return measure(chosen, arguments.out, time.monotonic() + 60 * arguments.minutes, stop)


def measure(chosen: Sequence[Part], out: Path, end: float, stop: Stop) -> int:
    """Measure parts until a time of the monotonic clock; the exit status."""
    failures = 0
    sections = []
    for part in chosen:
        start = time.monotonic()
        print(f"{part.title} (at most {min(part.minutes, (end - start) / 60):.0f} min) ...", flush=True)
        try:
            output = _output(part, min(end, start + 60 * part.minutes), stop)
        except Stopped:
            break
        except CommandFailed as failure:
            failures += 1
            output = f"Not measured: {failure}\n"
        lines = output.splitlines(keepends=True)
        records = [line for line in lines if line.startswith("{")]
        text = "".join(line for line in lines if not line.startswith("{")).strip()
        if records:
            (out / f"{part.name}.jsonl").write_text("".join(records))
        (out / f"{part.name}.md").write_text(f"{text}\n")
        pictures = "".join(f"\n\n![{part.title}]({name})" for name in part.pictures if (out / name).exists())
        sections.append(f"## {part.title}\n\n{text}{pictures}\n")
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
    everything = "\n".join(["# What hpcrl reaches here\n", *sections])
    (out / "README.md").write_text(everything)
    print(f"\n{everything}\nAll of it: {out / 'README.md'}")
    return 128 + stop.signal if stop.signal is not None else int(failures > 0)


def _output(part: Part, end: float, stop: Stop) -> str:
    """What the commands of a part print."""
    output = ""
    for command in part.commands:
        left = end - time.monotonic()
        if left <= 0:
            raise CommandFailed("there was no time left")
        output += run(command, left, stop)
    return output


if __name__ == "__main__":
    sys.exit(main())
