"""All that one benchmark measures: the limits of the cores, then rounds of runs on every layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpcrl.benching.arithmetic import Need, need_of
from hpcrl.benching.bound import Clocks, clocks_of
from hpcrl.benching.children import CommandFailed
from hpcrl.benching.layouts import Layout, Run, measure
from hpcrl.benching.machine import Limits, limits
from hpcrl.benching.processes import on_every_core
from hpcrl.benching.stepping import random_rate
from hpcrl.config import ActorCriticConfig
from hpcrl.envs.factory import describe_task
from hpcrl.envs.tasks import common_task
from hpcrl.envs.world import worlds_of
from hpcrl.errors import HpcrlError

_LONGEST_PROBE_S = 1.0
#: Iterations of a run that reaches what is expected of it.
_ITERATIONS = 6
#: What networks reach of the rate of large products.
_LIKELY_SHARE = 0.25


@dataclass(frozen=True)
class Ceiling:
    """What the cores could do, were there nothing else to do.

    Attributes:
        cores: that are used.
        stepping_per_s: env steps a second of all cores, with random actions.
        need: what an env step takes.
        limits: what a core reaches.
    """

    cores: int
    stepping_per_s: float
    need: Need
    limits: Limits

    @property
    def env_step_us(self) -> float:
        """Of a core, for an env step."""
        return 1e6 * self.cores / self.stepping_per_s

    @property
    def products_per_s(self) -> float:
        """Env steps a second whose products all cores can multiply, at the rate of large ones."""
        return self.cores * self.limits.flop_per_s / self.need.flop

    @property
    def copies_per_s(self) -> float:
        """Env steps a second whose unrolls one core can copy."""
        return self.limits.copied_bytes_per_s / self.need.unroll_bytes

    def likely_per_s(self, ranks: int) -> float:
        """Env steps a second that so many ranks may come near to."""
        flop_per_s = _LIKELY_SHARE * self.limits.flop_per_s
        return ranks / (1e-6 * self.env_step_us + self.need.flop / flop_per_s)

    def as_json(self) -> dict[str, float]:
        """Numbers by name."""
        found = {"cores": self.cores, "random_env_steps_per_s": self.stepping_per_s, "env_step_us": self.env_step_us}
        found |= {f"{name}_flop": getattr(self.need, name) for name in ("acting", "forward", "backward")}
        found |= {"unroll_bytes": self.need.unroll_bytes, "num_weights": self.need.num_weights}
        found |= {"products_env_steps_per_s": self.products_per_s, "copies_env_steps_per_s": self.copies_per_s}
        return found | self.limits._asdict()


@dataclass
class OnLayout:
    """The runs of one layout.

    Attributes:
        runs: those that succeeded.
        trouble: of the first that did not, one line.
    """

    layout: Layout
    runs: list[Run] = field(default_factory=list)
    trouble: str = ""

    @property
    def clocks(self) -> Clocks:
        """Where time goes: means over the runs."""
        names = self.runs[0].time_split
        split = {name: sum(run.time_split[name] for run in self.runs) / len(self.runs) for name in names}
        return clocks_of(split, self.layout.does_both)


def ceiling_of(config: ActorCriticConfig, cores: int, seconds: float) -> Ceiling:
    """Measure the cores and the environments. Starts processes.

    Raises:
        HpcrlError: an environment or a network that can't be made.
    """
    worlds = worlds_of(config)
    task = common_task(config.env_ids, [describe_task(world, config.hang_timeout) for world in worlds], config.task_id)
    need = need_of(config, task)
    probe_s = min(seconds, _LONGEST_PROBE_S)
    share = max(len(worlds), config.num_envs // cores)
    rates = on_every_core(random_rate, (config, task, share, 2 * probe_s), cores)
    return Ceiling(cores, sum(rates), need, limits(cores, probe_s / 2))


def rounds(
    found: Sequence[OnLayout],
    config: ActorCriticConfig,
    options: Sequence[str],
    ceiling: Ceiling,
    seconds: float,
    repeats: int,
    say: Callable[[str], None],
) -> None:
    """Every layout in turn, `repeats` times; one that failed is not tried again.

    Args:
        found: gets the runs as they end.
        options: of `hpcrl train`.
        seconds: that a run is measured for.
        say: gets a line before every run.
    """
    for repeat in range(1, repeats + 1):
        for on in found:
            if on.trouble:
                continue
            say(f"{on.layout.name}, run {repeat} of {repeats}")
            expected = ceiling.likely_per_s(on.layout.ranks) * seconds / _ITERATIONS
            iteration = max(round(expected), config.num_envs * config.unroll_length)
            try:
                on.runs.append(measure(config.algorithm, options, on.layout, iteration, repeat, seconds))
            except CommandFailed as failure:
                on.trouble = _in_one_line(str(failure))


def drop_unfinished_round(found: Sequence[OnLayout]) -> int:
    """Leave the runs of rounds that all layouts took part in, but for those that failed; how many rounds these are."""
    complete = min((len(on.runs) for on in found if not on.trouble), default=0)
    for on in found:
        del on.runs[complete:]
    return complete


def _in_one_line(trouble: str) -> str:
    """What hpcrl says of itself, else the last line."""
    lines = trouble.rstrip().splitlines()
    own = [line.removeprefix("hpcrl: ") for line in lines if line.startswith("hpcrl: ")]
    return (own or lines)[-1]


def write_lines(path: Path, found: Sequence[OnLayout], ceiling: Ceiling) -> None:
    """A JSON line for each run, with the ceiling in it.

    Raises:
        HpcrlError: the file can't be written.
    """
    lines = [json.dumps(asdict(run) | {"ceiling": ceiling.as_json()}) for on in found for run in on.runs]
    try:
        path.write_text("".join(line + "\n" for line in lines))
    except OSError as error:
        raise HpcrlError(f"{path} can't be written: {error}") from error
