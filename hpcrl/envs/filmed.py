"""Environments that are filmed: one at a time, made to give frames."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from hpcrl.envs.atari import is_atari, make_atari_vector
from hpcrl.envs.autoreset import LIFE_LOST
from hpcrl.envs.factory import find_spec
from hpcrl.envs.recipe import Recipe, find_maker, make
from hpcrl.envs.world import World
from hpcrl.errors import ConfigError

_FRAMES = "rgb_array"
#: What MuJoCo draws with where there is no screen, in the order of trial.
_OFF_SCREEN = ("egl", "osmesa")
_DEFAULT_FPS = 30.0
#: Of MuJoCo's environments that leave where they began, the camera that goes with them.
_FOLLOWING = "track"
#: What an environment of MuJoCo is made with where somebody chose what is seen of it.
_CHOICES = ("camera_id", "camera_name", "default_camera_config")


def make_filmed(world: World) -> gym.Env:
    """An environment of a world whose `render` gives frames; no screen is needed.

    One episode was begun, and its first frame seen.

    Raises:
        ConfigError: it can't be made to give frames, or what draws them is missing here.
    """
    if is_atari(world.env_id):
        return _AtariGame(world)
    # pygame opens a window, and looks for a sound card, unless it is told that there is none.
    for name in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(name, "dummy")
    _choose_mujoco_renderer(world.env_id)
    try:
        with warnings.catch_warnings():
            # Gymnasium warns of modes that an environment doesn't name; here the frames tell.
            warnings.filterwarnings("ignore", ".*render_mode", UserWarning)
            # GLFW's own words of a screen that isn't there, which MuJoCo says in an error.
            warnings.filterwarnings("ignore", r"\(\d+\) ", UserWarning)
            env = make(Recipe(world.env_id, {"render_mode": _FRAMES}))
            _follow(env)
            env.reset(seed=0)
            frame = env.render()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--video: {world.env_id} gives no frames under render_mode {_FRAMES!r}: {reason}") from error
    _require_frame(env, frame)
    return env


def _follow(env: gym.Env) -> None:
    """Show an environment of MuJoCo by its camera that follows, where it has one and nobody chose another.

    Left to itself Gymnasium 1.4 draws by a camera that stays where it is.
    """
    inside: Any = env.unwrapped
    renderer, model = getattr(inside, "mujoco_renderer", None), getattr(inside, "model", None)
    said = {} if inside.spec is None else inside.spec.kwargs
    if renderer is None or model is None or any(getattr(inside, name, said.get(name)) is not None for name in _CHOICES):
        return
    with suppress(KeyError):
        renderer.camera_id = model.camera(_FOLLOWING).id


def frame_of(env: gym.Env) -> NDArray[np.uint8]:
    """What an environment shows now: uint8 [height, width, 3]; ConfigError where that is something else."""
    viewer = getattr(getattr(env.unwrapped, "mujoco_renderer", None), "viewer", None)
    if viewer is not None:
        # Of several environments of MuJoCo another one drew last, or was closed, and left this one black.
        viewer.make_context_current()
    return _require_frame(env, env.render())


def _require_frame(env: gym.Env, frame: Any) -> NDArray[np.uint8]:
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    got = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
    name = type(env.unwrapped).__name__
    raise ConfigError(f"--video: {name}.render() must return frames uint8 [height, width, 3], got {got}")


def frames_per_second(env: gym.Env) -> float:
    """What the environment says, or 30."""
    return float(env.metadata.get("render_fps") or _DEFAULT_FPS)


class _AtariGame(gym.Env):
    """A game of Atari as policies of ours see it, whose frames are those of the screen, in colour: uint8 [210, 160, 3].

    An info tells under "life_lost" whether `terminated` means a life only, so that the game goes on.
    """

    render_mode = _FRAMES

    def __init__(self, world: World) -> None:
        self._envs: Any = make_atari_vector(world.env_id, 1, world.atari)
        self.metadata = {"render_fps": 60 / world.atari.frame_skip}
        self.observation_space, self.action_space = self._envs.single_observation_space, self._envs.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observations, _ = self._envs.reset(seed=seed, options=options)
        return observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self._envs.step(np.array([action]))
        life_lost = bool(info[LIFE_LOST][0])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {LIFE_LOST: life_lost}

    def render(self) -> Any:
        return self._envs._consoles[0].ale.getScreenRGB()

    def close(self) -> None:
        self._envs.close()


def _choose_mujoco_renderer(env_id: str) -> None:
    """Tell MuJoCo how to draw without a screen, before it is imported, unless the user did.

    Raises:
        ConfigError: an environment that is known to need it can't have it.
    """
    if "MUJOCO_GL" in os.environ or importlib.util.find_spec("mujoco") is None:
        return
    is_needed = _names_mujoco(env_id)
    # A user's own environment has imported it by now where it needs it.
    if not is_needed and "mujoco" not in sys.modules:
        return
    found = next((name for name in _OFF_SCREEN if _draws(name)), None)
    if found is not None:
        os.environ["MUJOCO_GL"] = found
    elif is_needed and "DISPLAY" not in os.environ:
        raise ConfigError(
            f"--video: MuJoCo draws {env_id} by EGL or OSMesa where there is no screen, and neither works here: "
            "install libegl1 with a driver, or libosmesa6, or set MUJOCO_GL"
        )


def _names_mujoco(env_id: str) -> bool:
    """Whether the registration of an environment says that it needs MuJoCo."""
    try:
        return find_maker(env_id) is None and "mujoco" in str(find_spec(env_id).entry_point)
    except (ImportError, ConfigError):
        return False  # whoever makes it says what is wrong


def _draws(name: str) -> bool:
    """Whether MuJoCo can draw by this means; tried in a process of its own, as a failure may end it."""
    script = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    environment = {**os.environ, "MUJOCO_GL": name}
    try:
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
