"""Films of episodes: frames of the environment, at its pace, in files that others can read."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import imageio.v3
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from hpcrl import A2CConfig
from hpcrl.commands.counting import Progress
from hpcrl.commands.eval import evaluate
from hpcrl.envs import filmed
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.envs.filmed import frame_of, frames_per_second, make_filmed
from hpcrl.envs.world import World
from hpcrl.errors import ConfigError
from hpcrl.storage.video import Video
from tests.trained import save_untrained


class Blind(CartPoleEnv):
    """Shows nothing."""

    def render(self) -> Any:
        return None


class Unseen(gym.Env[Any, Any]):
    """Knows nothing of rendering, and takes no argument."""

    observation_space = CartPoleEnv().observation_space
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None: ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return self.observation_space.sample(), {}


gym.register("hpcrl-tests/Blind-v0", Blind)  # type: ignore[arg-type]
gym.register("hpcrl-tests/Unseen-v0", Unseen)

CONFIG = A2CConfig(env="CartPole-v1", hidden_sizes=(8,))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("runs") / "run", CONFIG, 60)


def moving(height: int, width: int, count: int) -> list[np.ndarray]:
    """Frames of two colours that differ from each other."""
    frames = []
    for number in range(count):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, : 3 + 2 * number] = (250, 20, 90)
        frames.append(frame)
    return frames


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_cartpole_is_filmed(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    film, said = tmp_path / f"film{suffix}", tmp_path / "said.json"
    options = ("--episodes", "3", "--seed", "4", "--video", str(film), "--video-episodes", "2", "--json", str(said))
    assert evaluate([str(run_dir), *options]) == 0
    (task,) = json.loads(said.read_text())["tasks"]
    # Those of the evaluation, with the frame that each begins with.
    frames = sum(task["lengths"][:2]) + 2
    returns = ", ".join(f"{one:.2f}" for one in task["returns"][:2])
    before, last = capsys.readouterr().out.splitlines()[-2:]
    assert before == f"filming 2 episodes to {film} ..."
    assert last == f"{film}: 2 episodes, {frames} frames at 50 a second, returns {returns}"
    images = imageio.v3.imread(film)
    assert images.shape == (frames, 400, 600, 3)
    env = make_filmed(World("CartPole-v1"))
    env.reset(seed=task["seeds"][0])
    assert np.abs(images[0].astype(int) - frame_of(env)).mean() < 3
    assert (images[0] != images[5]).any()
    env.close()
    assert {path.name for path in tmp_path.iterdir()} == {film.name, "said.json"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_evaluation_and_leaves_nothing_of_a_film(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    words = [str(run_dir), "--episodes", "1", "--video", str(tmp_path / "film.gif")]
    with monkeypatch.context() as patched:
        patched.setattr(Video, "add", _striking(Video.add, number))
        assert evaluate(words) == 130
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("1 episode: return") and said[2].startswith("filming 1 episode to ")
    assert said[3:] == [f"stopped by {name}"]
    monkeypatch.setattr(EpisodeEnvs, "step", _striking(EpisodeEnvs.step, number))
    assert evaluate(words) == 130
    assert capsys.readouterr().out == f"stopped by {name}\n"
    assert not list(tmp_path.iterdir())


def _striking(step: Callable[..., Any], number: signal.Signals) -> Callable[..., Any]:
    strikes = [number]

    def strike(*arguments: Any) -> Any:
        if strikes:  # a second signal would end the tests
            signal.raise_signal(strikes.pop())
        return step(*arguments)

    return strike


def test_a_terminal_shows_how_many_episodes_are_over() -> None:
    for is_terminal, shown in (
        (True, ["0 of 1,000 episodes", "10 of 1,000 episodes", "990 of 1,000 episodes", ""]),
        (
            False,
            [],
        ),
    ):
        out = io.StringIO()
        out.isatty = lambda is_terminal=is_terminal: is_terminal  # type: ignore[method-assign, misc]
        with Progress(1000, out) as progress:
            progress.add(10)
            progress.add(980)
        assert out.getvalue().split("\r\x1b[K")[1:] == shown and "\n" not in out.getvalue()


@pytest.mark.parametrize(
    ("fps", "shown", "seconds"), [(10, range(12), 1.2), (30, range(12), 0.4), (100, range(0, 12, 2), 0.12)]
)
def test_a_gif_keeps_the_pace_and_the_colours(tmp_path: Path, fps: float, shown: range, seconds: float) -> None:
    frames = moving(21, 40, 12)
    with Video(tmp_path / "x.gif", fps) as video:
        for frame in frames:
            video.add(frame)
    assert video.frames == 12
    metas = [imageio.v3.immeta(tmp_path / "x.gif", index=number) for number in range(len(shown))]
    assert sum(meta["duration"] for meta in metas) == pytest.approx(1000 * seconds, abs=5)
    assert np.array_equal(imageio.v3.imread(tmp_path / "x.gif"), [frames[number] for number in shown])


def test_a_film_of_odd_size(tmp_path: Path) -> None:
    with Video(tmp_path / "x.mp4", 25) as video:
        for frame in moving(41, 63, 5):
            video.add(frame)
    images = imageio.v3.imread(tmp_path / "x.mp4")
    assert images.shape == (5, 42, 64, 3)
    assert np.abs(images[2, :41, :63].astype(int) - moving(41, 63, 5)[2]).mean() < 12


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_nothing_stays_of_a_film_that_fails(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match="frames of one size"), Video(tmp_path / f"x{suffix}", 25) as video:
        video.add(np.zeros((20, 20, 3), np.uint8))
        video.add(np.zeros((20, 22, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_filmed_is_refused_in_a_sentence(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(film: Path, *options: str) -> str:
        with pytest.raises(ConfigError) as caught:
            evaluate([str(run_dir), "--video", str(film), *options])
        assert not capsys.readouterr().out and "\n" not in str(caught.value)
        return str(caught.value)

    assert "ends in .mp4 or .gif" in refused(tmp_path / "film.avi")
    assert refused(tmp_path / "nowhere/film.gif").endswith(
        "nowhere/film.gif can't be written: No such file or directory"
    )
    assert "must be at least 1" in refused(tmp_path / "film.gif", "--video-episodes", "0")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "imageio_ffmpeg", None)
        assert "needs imageio-ffmpeg: pip install 'hpcrl[video]'" in refused(tmp_path / "film.mp4")
        patched.setitem(sys.modules, "pygame", None)
        assert "pygame is not installed" in refused(tmp_path / "film.gif")
        patched.setitem(sys.modules, "imageio.v3", None)
        assert "needs imageio: pip" in refused(tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        ("hpcrl-tests/Blind-v0", r"Blind.render\(\) must return frames uint8 \[height, width, 3\], got NoneType"),
        ("GridNavigation-v0", "--video: GridNavigation-v0 gives no frames"),
        ("hpcrl-tests/Unseen-v0", "gives no frames under render_mode 'rgb_array'"),
        ("tests.environments:Restless", "gives no frames under render_mode 'rgb_array': TypeError"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_environment_without_frames_is_refused(env_id: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_filmed(World(env_id))


class Robot(gym.Env[Any, Any]):
    """Draws as MuJoCo does: in what is current, which may be another's."""

    current: Robot | None = None

    def __init__(self) -> None:
        self.mujoco_renderer = SimpleNamespace(viewer=self)

    def make_context_current(self) -> None:
        Robot.current = self

    def render(self) -> Any:
        return np.full((2, 2, 3), 0 if Robot.current is not self else 9, np.uint8)


def test_of_several_robots_each_draws_itself() -> None:
    one, other = Robot(), Robot()
    assert all(frame_of(robot).all() for robot in (one, other, one))


def test_robots_that_walk_away_are_followed() -> None:
    pytest.importorskip("mujoco")

    def camera(env_id: str, **kwargs: Any) -> int:
        env = gym.make(env_id, render_mode="rgb_array", **kwargs)
        filmed._follow(env)
        inside: Any = env.unwrapped
        return inside.mujoco_renderer.camera_id

    assert camera("HalfCheetah-v5") == camera("Swimmer-v5") == camera("HalfCheetah-v5", camera_name="track") == 0
    assert camera("Reacher-v5") == -1
    assert camera("HalfCheetah-v5", camera_id=-1) == camera("Hopper-v5", default_camera_config={"distance": 9.0}) == -1


def test_mujoco_draws_by_what_works_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(filmed, "_draws", ("egl", "osmesa").__contains__)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    filmed._choose_mujoco_renderer("Hopper-v5")
    assert os.environ["MUJOCO_GL"] == "glfw"
    for works, chosen in ((("egl", "osmesa"), "egl"), (("osmesa",), "osmesa")):
        monkeypatch.delenv("MUJOCO_GL")
        monkeypatch.setattr(filmed, "_draws", works.__contains__)
        filmed._choose_mujoco_renderer("Hopper-v5")
        assert os.environ["MUJOCO_GL"] == chosen
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(filmed, "_draws", lambda name: False)
    with pytest.raises(ConfigError, match="EGL or OSMesa"):
        filmed._choose_mujoco_renderer("Hopper-v5")
    filmed._choose_mujoco_renderer("CartPole-v1")
    assert "MUJOCO_GL" not in os.environ


def test_a_game_of_atari_shows_its_screen() -> None:
    pytest.importorskip("ale_py")
    env = make_filmed(World("ALE/Pong-v5"))
    observation, _ = env.reset(seed=3)
    frames = []
    for _ in range(30):
        observation, _, _, _, info = env.step(env.action_space.sample())
        frames.append(frame_of(env))
    assert frames[0].shape == (210, 160, 3) and frames_per_second(env) == 15
    assert observation.shape == (84, 84) and info == {"life_lost": False}
    assert (frames[0] != frames[-1]).any()
    env.close()
