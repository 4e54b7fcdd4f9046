"""Environments in processes of their own: the same steps, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from hpcrl.envs import child_process, isolated
from hpcrl.envs.child_channel import Channel, Message
from hpcrl.envs.child_memory import SharedMemory
from hpcrl.envs.isolated import IsolatedEnv
from hpcrl.envs.recipe import Call, Recipe, make
from hpcrl.errors import ConfigError, EnvironmentFailure
from hpcrl.spaces import ACTION_MASK

#: Seeds of episodes that break, and of others.
BAD, GOOD = 17, 18
BREAKING = "tests.environments:Breaking"


@contextmanager
def running(recipe: Recipe, timeout_s: float | None = None) -> Iterator[IsolatedEnv]:
    env = IsolatedEnv(recipe, timeout_s)
    try:
        yield env
    finally:
        env.close()


def assert_same(one: Any, two: Any) -> None:
    """Equal to the bit, dtypes and structure included."""
    if isinstance(two, (dict, tuple, list)):
        assert type(one) is type(two)
        assert len(one) == len(two)
        for key in two if isinstance(two, dict) else range(len(two)):
            assert_same(one[key], two[key])
        return
    if isinstance(two, (np.ndarray, np.generic)):
        assert (one.dtype, one.shape, type(one)) == (two.dtype, two.shape, type(two))
        assert one.tobytes() == two.tobytes()
        return
    assert one == two


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pid: int) -> None:
    give_up = time.monotonic() + 10
    while not is_gone(pid):
        assert time.monotonic() < give_up, f"process {pid} lives on"
        time.sleep(0.01)


def test_steps_are_those_of_the_environment_to_the_bit() -> None:
    recipes = [
        Recipe("CartPole-v1"),
        Recipe("FrozenLake-v1", {"is_slippery": True}),
        Recipe("tests.worlds:Any-nested-dict-v0"),
        Recipe("tests.worlds:Masked-info-multi_discrete-v0"),
    ]
    ours, theirs = [IsolatedEnv(recipe) for recipe in recipes], [make(recipe) for recipe in recipes]
    for seed, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        assert (one.observation_space, one.action_space) == (two.observation_space, two.action_space)
        assert two.spec is not None
        assert (one.metadata, one.render_mode, one.spec.id) == (two.metadata, two.render_mode, two.spec.id)
        two.action_space.seed(seed)
        one.send_reset(seed)
    for seed, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        assert_same(one.receive_reset(), kept(two.reset(seed=seed)))
    num_ends = 0
    for seed in range(60):
        actions = [action_for(two) for two in theirs]
        for one, action in zip(ours, actions, strict=True):
            one.send(action)
        for one, two, action in zip(ours, theirs, actions, strict=True):
            step = kept(two.step(action))
            assert_same(one.receive(), step)
            if step[2] or step[3]:
                num_ends += 1
                assert_same(one.reset(seed=seed), kept(two.reset(seed=seed)))
    assert num_ends > len(recipes)
    for one in ours:
        one.send_close()
        one.close()
        one.close()
        with pytest.raises(EnvironmentFailure, match="has ended"):
            one.step(0)


def action_for(env: gym.Env) -> Any:
    """An action that is allowed."""
    return env.unwrapped._right if hasattr(env.unwrapped, "_right") else env.action_space.sample()


def kept(outcome: tuple[Any, ...]) -> tuple[Any, ...]:
    """What an environment returns, with what an isolated one keeps of the info."""
    *rest, info = outcome
    return *rest, {key: value for key, value in info.items() if key == ACTION_MASK}


def test_the_child_is_no_rank(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_SIZE", "PRTE_X", "SLURM_PROCID", "MPI4PY_RC_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MY_SETTING", "kept")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # Of no space that is shared: all of it is pickled.
    with running(Recipe("tests.environments:Surroundings")) as env:
        seen = json.loads(env.reset(options={"level": 3})[0])
        long = "x" * 3_000_000
        assert env.step(long) == (long, 0.0, False, False, {"action_mask": "xxx"})
        assert capfd.readouterr().err == f"hello from {env.pid}\n"
    assert seen["options"] == {"level": 3}
    assert not [name for name in seen["variables"] if name.startswith(child_process.LAUNCHER_PREFIXES)]
    assert seen["variables"]["MY_SETTING"] == "kept"
    assert "PYTHONPATH" not in seen["variables"]
    assert not {"mpi4py", "torch", "h5py"} & {module.split(".")[0] for module in seen["modules"]}


def test_what_it_raises_comes_with_its_traceback() -> None:
    with running(Recipe(BREAKING)) as env:
        env.reset(seed=BAD)
        env.step(0)
        env.step(0)
        with pytest.raises(EnvironmentFailure, match=r"^tests\.environments:Breaking raised .*KeyError") as raised:
            env.step(0)
        assert 'environments.py", line' in str(raised.value)
        assert 'raise KeyError("at home")' in str(raised.value)
        # It goes on.
        first, _ = env.reset(seed=GOOD)
        np.testing.assert_array_equal(env.step(1)[0], [GOOD, 1])
        np.testing.assert_array_equal(first, [GOOD, 0])


def test_how_it_ended() -> None:
    crashing, exiting = (IsolatedEnv(Recipe(BREAKING, {"where": "reset", "how": how})) for how in ("crash", "exit"))
    hanging = IsolatedEnv(Recipe(BREAKING, {"where": "reset", "how": "sleep"}), timeout_s=0.3)
    missing = IsolatedEnv(Recipe("tests.environments:Nowhere-v0"))
    for env in (crashing, exiting):
        env.send_reset(BAD)
    with pytest.raises(EnvironmentFailure, match="ended by SIGSEGV") as crashed:
        crashing.receive_reset()
    assert "in _break_if" in str(crashed.value)
    with pytest.raises(EnvironmentFailure, match="exited with status 3"):
        exiting.receive_reset()
    with pytest.raises(EnvironmentFailure, match=r"Nowhere-v0 raised .*NameNotFound"):
        _ = missing.observation_space
    with pytest.raises(EnvironmentFailure, match="has ended"):
        missing.reset()
    pid = hanging.pid
    assert pid is not None
    hanging.reset(seed=GOOD)
    start = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=r"hung .*a reset within 0\.3 s") as hung:
        hanging.reset(seed=BAD)
    assert 0.3 <= time.monotonic() - start < 3
    assert "in _break_if" in str(hung.value)
    assert is_gone(pid)
    assert hanging.pid is None
    for env in (crashing, exiting, hanging, missing):
        env.close()


def test_what_a_dead_child_started_is_ended_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "_LOOK_EVERY_S", 0.1)
    with running(Recipe(BREAKING, {"how": "fork"})) as env:
        env.reset(seed=BAD)
        env.step(0)
        group = env.pid
        assert group is not None
        env.step(0)
        # The fork holds the child's end of the socket open.
        with pytest.raises(EnvironmentFailure, match="exited with status 3"):
            env.step(0)
    give_up = time.monotonic() + 10
    while any(not is_gone(int(entry.name)) and is_in(group, entry) for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < give_up, "the fork lives on"
        time.sleep(0.01)


def is_in(group: int, process: Path) -> bool:
    """Whether a process, a folder of /proc, belongs to a group."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2]) == group
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_close_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_CLOSE_TIMEOUT_S", 0.2)
    env = IsolatedEnv(Recipe(BREAKING, {"where": "close", "how": "sleep"}))
    env.reset(seed=BAD)
    pid = env.pid
    assert pid is not None
    env.close()
    assert is_gone(pid)


def test_a_child_that_hangs_dies_with_its_parent() -> None:
    script = f"""
import time
from hpcrl.envs.isolated import IsolatedEnv
from hpcrl.envs.recipe import Recipe
env = IsolatedEnv(Recipe({BREAKING!r}, {{"where": "reset", "how": "sleep"}}))
env.observation_space
env.send_reset({BAD})
print(env.pid, flush=True)
time.sleep(100)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not is_gone(child)
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(child)


def test_signals_for_the_rank_leave_it_alone() -> None:
    with running(Recipe(BREAKING)) as env:
        env.reset(seed=GOOD)
        assert env.pid is not None
        assert os.getpgid(env.pid) != os.getpgid(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(env.pid, number)
        np.testing.assert_array_equal(env.step(0)[0], [GOOD, 1])


def test_messages_of_any_size_and_the_end() -> None:
    ours, its = socket.socketpair()
    message = Message(b"p", -0.5, True, False, os.urandom(2_000_000))

    def send() -> None:
        channel = Channel(its)
        channel.send(message)
        channel.send(Message(b"c"))
        channel.close()

    sender = threading.Thread(target=send)
    sender.start()
    channel = Channel(ours)
    assert channel.wait(10)
    assert channel.receive() == message
    assert channel.receive() == Message(b"c")
    sender.join()
    assert channel.wait(0)
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(BrokenPipeError):
        channel.send(message)
    channel.close()


@pytest.mark.parametrize(
    ("space", "fits", "others"),
    [
        (
            gym.spaces.Box(-1, 1, (1, 2), np.float32),
            np.ones((1, 2), np.float32),
            [np.ones((1, 2)), np.ones(2, np.float32), [[1.0, 1.0]], np.ones((1, 2), ">f4"), None],
        ),
        (gym.spaces.Discrete(3), np.int64(2), [2, np.int32(2), np.array(2), True]),
        (
            gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Tuple([gym.spaces.MultiBinary(2)])),
            {"a": np.int64(1), "b": (np.array([0, 1], np.int8),)},
            [
                {"a": np.int64(1), "b": [np.array([0, 1], np.int8)]},
                {"a": np.int64(1)},
                {"a": np.int64(1), "b": ()},
                {"a": np.int64(1), "b": (np.array([0, 1], np.int8),), "c": 0},
                {"a": 1, "b": (np.array([0, 1], np.int8),)},
            ],
        ),
        (gym.spaces.Text(3), None, ["abc"]),
    ],
)
def test_only_what_comes_out_the_same_is_shared(space: gym.Space, fits: Any, others: list[Any]) -> None:
    file = os.memfd_create("test")
    memory, same = (SharedMemory(file, space, gym.spaces.Discrete(2)) for _ in range(2))
    os.close(file)
    assert memory.action.write(np.int64(1))
    assert [memory.observation.write(other) for other in others] == [False] * len(others)
    if fits is not None:
        assert memory.observation.write(fits)
        assert_same(same.observation.read(), fits)
    assert same.action.read() == 1


def test_recipes() -> None:
    env = make(Recipe("CartPole-v1", {"sutton_barto_reward": True}))
    assert not isinstance(env, gym.wrappers.OrderEnforcing)
    env.reset(seed=1)
    assert env.step(0)[1] == 0.0
    by_module = make(Recipe("tests.environments:Restless-v0"))
    assert isinstance(by_module, gym.wrappers.TimeLimit)
    wrappers = (
        Call("gymnasium.wrappers:TimeLimit", {"max_episode_steps": 2}),
        Call("gymnasium.wrappers:ReshapeObservation", {"shape": (2, 1)}),
    )
    wrapped = make(Recipe("tests.environments:Restless", wrappers=wrappers))
    assert wrapped.reset(seed=1)[0].shape == (2, 1)
    assert [wrapped.step(0)[3] for _ in range(2)] == [False, True]
    with pytest.raises(ConfigError, match=r"builtins:dict must make a gymnasium\.Env, got dict"):
        make(Recipe("builtins:dict"))
