"""Signals: the run finishes its update, saves and leaves; a second one kills; nothing is lost either way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from hpcrl.cluster.launch import launcher_command, rank_environment
from tests.commands import HPCRL, Running, in_turn, weights

_FOREVER = ("--total-env-steps", "100000000", "--num-iterations", "10000", "--no-tensorboard")
_ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


def _start(run_dir: Path, *options: str) -> Running:
    return Running([*HPCRL, "train", "a2c", "--run-dir", str(run_dir), *_FOREVER, *options])


def _start_under_launcher(run_dir: Path) -> Running:
    command = [*HPCRL, "train", "a2c", "--run-dir", str(run_dir), *_FOREVER, "--checkpoint-every", "2048"]
    return Running(launcher_command(2, command), environment=rank_environment(os.environ))


def _is_training(run_dir: Path) -> bool:
    metrics = run_dir / "metrics.csv"
    return metrics.exists() and len(metrics.read_text().splitlines()) > 2


def _expect_saved(running: Running, run_dir: Path, asked: str = "SIGUSR1") -> None:
    done = running.wait(timeout=30)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert f"stopped by {asked} at" in done.stdout
    assert "--resume" in done.stdout
    assert weights(run_dir).size
    assert not running.descendants()


@pytest.mark.parametrize(
    ("options", "number"),
    [*(((), number) for number in _ASKING), *((("--ranks", "2"), number) for number in _ASKING[1:3])],
)
def test_the_first_signal_saves_and_leaves(tmp_path: Path, options: tuple[str, ...], number: signal.Signals) -> None:
    running = _start(tmp_path / "run", *options)
    running.until(lambda: _is_training(tmp_path / "run"))
    running.process.send_signal(number)
    _expect_saved(running, tmp_path / "run", "Ctrl-C" if number == signal.SIGINT else number.name)


@pytest.mark.parametrize(
    ("options", "delay_s"),
    [((), 0.3), (("--ranks", "2"), 0.3), (("--ranks", "2"), 1.5)],
    ids=["one-process", "two-ranks", "two-ranks-later"],
)
def test_a_signal_during_start_up_is_not_lost(tmp_path: Path, options: tuple[str, ...], delay_s: float) -> None:
    running = _start(tmp_path / "run", *options)
    # Until its handlers stand, a process dies of the signal: the first thing that it does.
    running.until(lambda: _handles(running.process.pid, signal.SIGUSR1))
    time.sleep(delay_s)
    running.process.send_signal(signal.SIGUSR1)
    _expect_saved(running, tmp_path / "run")


@pytest.mark.parametrize("options", [(), ("--ranks", "2")], ids=["one-process", "two-ranks"])
def test_a_second_signal_kills(tmp_path: Path, options: tuple[str, ...]) -> None:
    # An environment that sleeps for ever can't finish its update.
    running = _start(tmp_path / "run", *options, "--env", "tests.environments:Sleeping-v0")
    running.until(lambda: (tmp_path / "run/metrics.csv").exists())
    time.sleep(0.5)
    for _ in range(2):
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert running.wait(timeout=15).returncode != 0
    assert not running.descendants()


def test_killing_the_process_that_started_the_ranks_ends_them(tmp_path: Path) -> None:
    running = _start(tmp_path / "run", "--ranks", "2")
    running.until(lambda: _is_training(tmp_path / "run"))
    ranks = running.ranks()
    assert len(ranks) == 2
    running.process.kill()
    end = time.monotonic() + 15
    while any(_is_alive(pid) for pid in ranks):
        assert time.monotonic() < end, "the ranks live on"
        time.sleep(0.1)
    running.wait(timeout=10)


def test_sigusr2_saves_and_goes_on(tmp_path: Path) -> None:
    running = _start(tmp_path / "run", "--checkpoint-every", "0", "--ranks", "2")
    running.until(lambda: _is_training(tmp_path / "run"))
    assert not list((tmp_path / "run/checkpoints").glob("*.h5"))
    running.process.send_signal(signal.SIGUSR2)
    running.until(lambda: list((tmp_path / "run/checkpoints").glob("*.h5")))
    running.process.send_signal(signal.SIGUSR1)
    _expect_saved(running, tmp_path / "run")


def test_the_users_own_launcher_forwards_sigusr1(tmp_path: Path) -> None:
    running = _start_under_launcher(tmp_path / "run")
    running.until(lambda: _is_training(tmp_path / "run"))
    running.process.send_signal(signal.SIGUSR1)
    _expect_saved(running, tmp_path / "run")


def test_the_users_own_launcher_interrupted_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    run_dirs = {number: tmp_path / number.name for number in (signal.SIGINT, signal.SIGTERM)}
    for number, run_dir in run_dirs.items():
        running = _start_under_launcher(run_dir)
        running.until(lambda run_dir=run_dir: list((run_dir / "checkpoints").glob("*.h5")))  # type: ignore[misc]
        running.process.send_signal(number)
        running.wait(timeout=30)
        assert weights(run_dir).size
    outcomes = in_turn([("eval", run_dir, "--episodes", 2) for run_dir in run_dirs.values()])
    assert [done.returncode for done in outcomes] == [0, 0], outcomes


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, by the kernel's word."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)
