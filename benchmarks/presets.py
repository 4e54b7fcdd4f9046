"""How many env steps and seconds the presets need until they have learned.

    python -m benchmarks.presets [NAME ...] [--seeds 1 2 3] [--ranks 1] [--options=WORDS] [--time-limit 3600]
        [--out benchmarks/results]

NAME is a preset, of all algorithms that it is there for, or ALGORITHM/NAME; WORDS are more options of `hpcrl train`,
as in --options="--precision bfloat16". Each is run with every seed, one run after the other: `hpcrl train ALGORITHM
--preset NAME --seed S --ranks N WORDS`, which stops at the end of the iteration in which the mean return of the last
100 episodes reaches the preset's threshold (with --to-the-end: goes on to its last env step), and is ended where it
takes longer than the time limit. --out gets

- presets.csv: a row for each preset, options, seed and number of ranks, in place of the one that was there;
- curves/ALGORITHM-NAME-OPTIONS-ranksN-seedS.csv: the learning curve of each;
- presets.md: the table of all rows, with medians and ranges over the seeds;
- presets.png: all learning curves, with the thresholds; only where matplotlib is installed.

Rows and curves are written after every run, the table and the plot at the end. `--seeds` without a number only makes
these two anew.
Status: 0 where all runs went through, whether or not they reached their thresholds; 1 where one failed (after the
others); 2 for input that can't be run; 128 + the number of the signal that stopped it.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.children import CommandFailed
from benchmarks.preset_results import Curve, Result, draw, markdown, read, read_curve, write, write_curve, write_file
from benchmarks.steps import Stop, Stopped, run
from hpcrl.errors import ConfigError, HpcrlError
from hpcrl.presets import PRESETS
from hpcrl.presets.preset import Preset
from hpcrl.storage.run_directory import RunDirectory

#: Presets by ALGORITHM/NAME.
BY_LABEL: Mapping[str, Preset] = {f"{preset.algorithm}/{preset.name}": preset for preset in PRESETS.values()}


class Plan(NamedTuple):
    """What is to be measured; see `benchmarks.preset_results.Result`."""

    preset: str
    options: str
    seed: int
    threshold: float | None


def main(
    words: Sequence[str] | None = None,
    known: Mapping[str, Preset] = BY_LABEL,
    start: Sequence[str] = (sys.executable, "-m", "hpcrl"),
) -> int:
    """Measure; the exit status.

    Args:
        words: of the command line.
        known: presets by ALGORITHM/NAME.
        start: what stands for the command hpcrl.
    """
    arguments = _parser().parse_args(words)
    stop = Stop()
    stop.install()
    try:
        labels = _labels(arguments.names or list(known), known)
        _make_folder(arguments.out / "curves")
        failures = 0
        for label in labels:
            preset = known[label]
            command = [*start, "train", preset.algorithm, "--preset", preset.name, "--ranks", str(arguments.ranks)]
            command += shlex.split(arguments.options)
            if preset.threshold is not None and not arguments.to_the_end:
                command.append(f"--stop-return={preset.threshold}")
            for seed in arguments.seeds:
                plan = Plan(label, arguments.options, seed, preset.threshold)
                measured = _measure(plan, command, arguments.time_limit, stop)
                failures += measured is None
                if measured is not None:
                    _add(arguments.out, *measured)
        _renew(arguments.out)
    except Stopped:
        assert stop.signal is not None
        print(f"benchmarks.presets: stopped by {stop.signal.name}", file=sys.stderr, flush=True)
        return 128 + stop.signal
    except HpcrlError as error:
        print(f"benchmarks.presets: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    return int(failures > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.presets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="NAME or ALGORITHM/NAME (default: all)")
    parser.add_argument("--to-the-end", action="store_true", help="go on where the threshold is reached")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--options", metavar="WORDS", default="", help="of hpcrl train, beside the preset")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds that a run may take")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    return parser


def _labels(names: Sequence[str], known: Mapping[str, Preset]) -> list[str]:
    """The presets that are meant, as ALGORITHM/NAME."""
    labels = []
    for name in names:
        meant = [label for label, preset in known.items() if name in (label, preset.name)]
        if not meant:
            raise ConfigError(f"unknown preset {name!r}, expected one of: {', '.join(known)}")
        labels += meant
    return list(dict.fromkeys(labels))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {path} can't be made: {error}") from error


def _measure(plan: Plan, command: Sequence[str], time_limit: float, stop: Stop) -> tuple[Result, Curve] | None:
    """Run a preset with a seed and say how it went; None where it failed."""
    try:
        result, curve = train(plan, command, time_limit, stop)
    except CommandFailed as failure:
        print(f"benchmarks.presets: {plan.preset}, seed {plan.seed}: {failure}", file=sys.stderr, flush=True)
        return None
    threshold = plan.threshold
    if threshold is None:
        how = f"returned {result.return_last_100} after {result.env_steps:,} env steps and {result.wall_s:.1f} s"
    elif result.reached:
        how = f"reached {threshold:g} after {result.threshold_env_steps:,} env steps and {result.threshold_s:.1f} s"
    else:
        how = f"did not reach {threshold:g} in {result.env_steps:,} env steps and {result.wall_s:.1f} s"
    print(f"{plan.preset}, seed {plan.seed}: {how}", flush=True)
    return result, curve


def train(plan: Plan, command: Sequence[str], time_limit: float, stop: Stop) -> tuple[Result, Curve]:
    """One run of a preset; one that the time limit cuts short counts for what it did until then.

    Args:
        plan: what the run is for.
        command: without seed and run directory.
        time_limit: s.

    Raises:
        CommandFailed: the run failed, or ended before its time for another reason.
        Stopped: a signal asked to stop.
    """
    with tempfile.TemporaryDirectory(prefix="hpcrl-preset-", ignore_cleanup_errors=True) as folder:
        paths = RunDirectory(Path(folder) / "run")
        words = [*command, "--seed", str(plan.seed), "--run-dir", str(paths.path)]
        end = time.monotonic() + time_limit
        try:
            run(words, time_limit, stop)
        except CommandFailed:
            if time.monotonic() < end or not paths.metrics_file.exists():
                raise
        in_time = time.monotonic() < end
        try:
            outcome = paths.outcome_file.read_text().strip()
            facts, curve = json.loads(paths.config_file.read_text()), read_curve(paths.metrics_file)
        except (OSError, ValueError) as error:
            raise CommandFailed(f"{' '.join(words)}: its run directory can't be read: {error}") from error
    if in_time and outcome != "finished":
        raise CommandFailed(f"{' '.join(words)}: it was stopped")
    if not curve:
        raise CommandFailed(f"{' '.join(words)}: no iteration was over within {time_limit:.0f} s")
    return result_of(plan, facts, curve), curve


def result_of(plan: Plan, facts: Mapping[str, Any], curve: Curve) -> Result:
    """The row of a run.

    Args:
        plan: what the run is for.
        facts: of its `config.json`.
        curve: at least one iteration.
    """
    target = math.inf if plan.threshold is None else plan.threshold
    reached = next(((env_steps, seconds) for env_steps, seconds, mean in curve if mean >= target), (None, None))
    env_steps, wall_s, last = curve[-1]
    return Result(
        preset=plan.preset,
        options=plan.options,
        seed=plan.seed,
        ranks=facts["layout"]["ranks"],
        cores=facts["machine"]["cores"],
        threshold=plan.threshold,
        threshold_env_steps=reached[0],
        threshold_s=reached[1],
        return_last_100=None if math.isnan(last) else last,
        env_steps=env_steps,
        wall_s=wall_s,
    )


def _add(out: Path, result: Result, curve: Curve) -> None:
    """Write down a run, in place of an earlier one like it."""
    write_curve(out / "curves" / result.curve, curve)
    others = [other for other in read(out / "presets.csv") if other.key != result.key]
    write(out / "presets.csv", [*others, result])


def _renew(out: Path) -> None:
    """The table and the plot of all that was measured."""
    results = read(out / "presets.csv")
    if not results:
        return
    write_file(out / "presets.md", lambda path: path.write_text(markdown(results)))
    print(f"\n{markdown(results)}\nTable: {out / 'presets.md'}")
    try:
        figure = draw(results, {result.key: read_curve(out / "curves" / result.curve) for result in results})
    except ImportError:
        print("There is no plot, as matplotlib is missing: pip install 'hpcrl[plot]'", file=sys.stderr)
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"a learning curve of {out / 'presets.csv'} can't be read: {error}") from error
    write_file(out / "presets.png", lambda path: figure.savefig(path, format="png"))
    print(f"Plot: {out / 'presets.png'}")


if __name__ == "__main__":
    sys.exit(main())
