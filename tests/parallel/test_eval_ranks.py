"""`hpcrl eval --ranks`: what comes out does not depend on how many play, and one of them speaks."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl import PPOConfig
from hpcrl.errors import CheckpointError
from tests.trained import save_untrained


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signals are handled afterwards as they were before."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.mpi(ranks=(3,))
def test_ranks_play_what_one_process_plays(shared_dir: Path, handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrl.cluster.mpi import world
    from hpcrl.commands.eval import evaluate
    from hpcrl.signals import Requests

    comm, run_dir = world(), shared_dir / "run"
    if comm.rank == 0:
        save_untrained(run_dir, PPOConfig(env="Pendulum-v1", normalise_observations=True, hidden_sizes=(64,)), 30)
    comm.Barrier()

    def said(*options: str, status: int = 0) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert evaluate([str(run_dir), "--episodes", "21", *options]) == status
        return out.getvalue()

    together = said("--ranks", "3", "--json", str(shared_dir / "together.json"))
    if comm.rank == 0:
        assert "21 episodes: return -" in together
        assert said("--json", str(shared_dir / "alone.json")) == together
        assert (shared_dir / "alone.json").read_bytes() == (shared_dir / "together.json").read_bytes()
    else:
        assert not together

    with pytest.raises(CheckpointError, match="neither") as caught:
        evaluate([str(shared_dir / "nowhere"), "--ranks", "3"])
    assert caught.value.on_all_ranks

    def ask(requests: Requests) -> None:
        requests.stop = "SIGUSR1" if comm.rank == 1 else None

    monkeypatch.setattr(Requests, "install", ask)
    stopped = said("--ranks", "3", status=130)
    assert stopped == ("stopped by a signal to another rank\n" if comm.rank == 0 else "")
