"""Atari 2600 games with the field's usual preprocessing: single gray frames, raw rewards, a seed for every episode."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from hpcrl.envs.atari_console import Console, import_atari
from hpcrl.errors import ConfigError, EnvironmentFailure, ShapeError

_NAMESPACE = "ALE/"
_SEED_LIMIT = 2**63
#: Bytes kept for a console's state, of which the games of ale-py 0.12.1 take up to 8,256.
_CONSOLE_BYTES = 16384
# splitmix64 (Steele, Lea, Flood 2014): its step, and the shifts and factors of its finaliser.
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
#: Arrays [num_envs] that are a sub-environment's state beside its console's; attributes of `AtariEnvs` with a _ before.
_COUNTERS = ("seed", "steps", "lives", "held", "playing")


@dataclass(frozen=True)
class AtariOptions:
    """How a game is played and shown.

    Attributes:
        frame_skip: frames that an action is held for, 1 to 60; an observation is the maximum of the last two.
        sticky_actions: probability in [0, 1) that a frame repeats the action of the frame before instead of the
            agent's (Machado et al. 2018, "Revisiting the Arcade Learning Environment", section 5, where it is 0.25).
        full_action_set: all 18 actions rather than those that the game uses.
        life_loss: a lost life is reported as `terminated`, though the game goes on.
        noop_max: an episode begins with 1 to this many frames without an action; 0 for none.
        fire_reset: where the game uses FIRE, an episode begins with one frame of it, after those without an action.
        max_frames: frames after which an episode is truncated, at least 1; those that it began with don't count.
        screen_size: height and width of an observation, 1 to 210.

    Raises:
        ConfigError: a value out of range.
    """

    frame_skip: int = 4
    sticky_actions: float = 0.0
    full_action_set: bool = False
    life_loss: bool = False
    noop_max: int = 30
    fire_reset: bool = True
    max_frames: int = 108_000
    screen_size: int = 84

    def __post_init__(self) -> None:
        ranges = {
            "frame_skip": (1, 60),
            "noop_max": (0, 10_000),
            "max_frames": (1, 2**31 - 1),
            "screen_size": (1, 210),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"AtariOptions expected {name} as an integer of {low} to {high}, got {value!r}.")
        if not 0.0 <= self.sticky_actions < 1.0:
            raise ConfigError(f"AtariOptions expected sticky_actions in [0, 1), got {self.sticky_actions!r}.")


def is_atari(env_id: str) -> bool:
    """Whether `env_id` names a game of the Arcade Learning Environment, ALE/..., known or not."""
    return env_id.rpartition(":")[2].startswith(_NAMESPACE)


def make_atari_vector(env_id: str, num_envs: int, options: AtariOptions) -> VectorEnv:
    """`AtariEnvs` of the game that `env_id` is registered for; of the registration nothing but the game is used.

    Args:
        env_id: as ALE/Pong-v5.
        num_envs: sub-environments, at least 1.
        options: how the game is played and shown.

    Raises:
        ConfigError: unknown game, no sub-environments, or ale-py or OpenCV isn't installed.
    """
    return AtariEnvs(_find_game(env_id), num_envs, options)


def _find_game(env_id: str) -> str:
    """ale-py's name of the game, as ms_pacman."""
    import_atari()
    name = env_id.rpartition(":")[2]
    known = [known for known in gym.registry if known.startswith(_NAMESPACE)]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]
        raise ConfigError(f"--env {env_id!r} is not a game of ale-py, the nearest is {nearest}.")
    return str(gym.spec(name).kwargs["game"])


class AtariEnvs(VectorEnv):
    """Games played one after the other on one core, without autoreset and with a seed for every sub-environment.

    An episode is a whole game, of which the agent sees single frames: uint8 [screen_size, screen_size], gray, the
    maximum over the last two of `frame_skip` frames. It depends on its seed and actions only, not on `num_envs`, its
    neighbours or what was played before. Observations are written to the same memory at every step and reset.

    Frames equal those of Gymnasium's AtariPreprocessing while a game goes on. At its end ours are the last two frames,
    where Gymnasium's are older; and a lost life doesn't cut the frames of its step short.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(self, game: str, num_envs: int, options: AtariOptions) -> None:
        """`game` is ale-py's name, as ms_pacman.

        Raises:
            ConfigError: no sub-environments, or ale-py or OpenCV isn't installed.
        """
        if num_envs < 1:
            raise ConfigError(f"AtariEnvs expected num_envs of at least 1, got {num_envs}.")
        self.num_envs, self.options = num_envs, options
        self._consoles = [Console(game) for _ in range(num_envs)]
        self._codes = np.array(self._consoles[0].actions(options.full_action_set), np.int64)
        # ALE's code of FIRE is 1, that of no action 0.
        self._start = [1] if options.fire_reset and 1 in self._consoles[0].actions(full=False) else []
        self._make_spaces()
        self._memory = np.zeros(self.observation_space.shape or (), np.uint8)
        self._seed = np.zeros(num_envs, np.int64)
        self._steps = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int64)
        self._held = np.zeros(num_envs, np.int64)  # code of the action of the last frame
        self._playing = np.zeros(num_envs, np.bool_)

    def _make_spaces(self) -> None:
        shape = (self.options.screen_size, self.options.screen_size)
        self.single_observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = gym.spaces.Discrete(len(self._codes))
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Starts an episode in every sub-environment, or in those of `options["reset_mask"]`.

        Args:
            seed: integers [num_envs] in [0, 2**63), those outside the mask unused; an int stands for seed,
                seed + 1, ...; None draws seeds from `np_random`, which `get_state` doesn't hold.
            options: may hold `reset_mask`, bool [num_envs].

        Returns:
            Observations, uint8 [num_envs, screen_size, screen_size], also of the sub-environments that go on, valid
            until the next step or reset; and an empty info.

        Raises:
            ConfigError: a seed is no integer in range, their number isn't `num_envs`, or an option is unknown.
            ShapeError: the mask has another shape or dtype.
        """
        rows = self._checked_rows(options)
        self.reset_rows(rows, self._checked_seeds(seed)[rows])
        return self._memory, {}

    def reset_rows(self, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Starts an episode in each of `rows`, int [n], from `seeds`, int64 [n] in [0, 2**63), unchecked.

        Returns:
            Their first observations, uint8 [n, screen_size, screen_size].
        """
        self._seed[rows], self._steps[rows], self._held[rows] = seeds, 0, 0
        self._playing[rows] = True
        for row, noops in zip(rows.tolist(), self._noops(rows), strict=True):
            console = self._consoles[row]
            console.begin([0] * noops + self._start, self._memory[row])
            self._lives[row] = console.ale.lives()
        return self._memory[rows]

    def _noops(self, rows: NDArray[np.intp]) -> list[int]:
        """Frames [n] that the episodes of `rows` [n] begin with: 1 to noop_max, all alike."""
        most = self.options.noop_max
        if not most:
            return [0] * len(rows)
        return (1 + _random(self._seed[rows], np.zeros_like(rows), 1)[:, 0] % most).tolist()

    def step(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Plays `frame_skip` frames of every sub-environment.

        Args:
            actions: integers [num_envs], places in the action set.

        Returns:
            Observations, uint8 [num_envs, screen_size, screen_size], valid until the next step or reset; rewards,
            float64 [num_envs], the score as the game counts it; terminated, bool [num_envs], the game is over or,
            under `options.life_loss`, a life is lost; truncated, bool [num_envs], the game isn't over after
            `max_frames`; and an info with `life_lost`, bool [num_envs]: terminated by a lost life only, so that the
            game goes on and must not be reset.

        Raises:
            EnvironmentFailure: a sub-environment is finished or was never reset.
            ShapeError: the actions have another shape or dtype.
            ConfigError: an action is out of range.
        """
        self._check_step(actions)
        rewards, lives = np.empty(self.num_envs, np.float64), np.empty(self.num_envs, np.int64)
        over = np.empty(self.num_envs, np.bool_)
        frames = self._frame_actions(self._codes[actions])
        for row, console in enumerate(self._consoles):
            rewards[row] = console.play(frames[row], self._memory[row])
            over[row], lives[row] = console.ale.game_over(), console.ale.lives()
        self._steps += 1
        truncated = (self._steps * self.options.frame_skip >= self.options.max_frames) & ~over
        self._playing = ~(over | truncated)
        life_lost = self._life_lost(lives) & ~over
        return self._memory, rewards, over | life_lost, truncated, {"life_lost": life_lost & ~truncated}

    def _life_lost(self, lives: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [num_envs], all false where that doesn't matter; `lives` [num_envs] are remembered."""
        # In some games the last life ends some frames before the game does.
        lost = (lives < self._lives) & (lives > 0) & self.options.life_loss
        self._lives = lives
        return lost

    def _frame_actions(self, codes: NDArray[np.int64]) -> list[list[int]]:
        """ALE's code of each frame [num_envs][frame_skip] from the agent's `codes` [num_envs]."""
        count = self.options.frame_skip
        if not self.options.sticky_actions:
            return [[code] * count for code in codes.tolist()]
        # Number 0 of the episode was for the frames that it began with.
        sticky = _random(self._seed, 1 + self._steps * count, count) < self.options.sticky_actions * 2.0**32
        frames = np.empty((self.num_envs, count), np.int64)
        for number in range(count):
            self._held = np.where(sticky[:, number], self._held, codes)
            frames[:, number] = self._held
        return frames.tolist()

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Where every game stands, as arrays with the sub-environment first.

        Of the 104 games of ale-py 0.12.1, 102 go on from it bit for bit. In Q*bert and Tetris the emulator may stand in
        the middle of a frame, which its own saved state leaves out: there the game goes on with another timing.

        Returns:
            `console`, uint8 [num_envs, 16384], of which the first `console_size`, int64 [num_envs], count; `seed`,
            `steps`, `lives` and `held` (ALE's code of the last frame's action), int64 [num_envs]; `playing`, bool
            [num_envs], an episode is under way.
        """
        console = np.zeros((self.num_envs, _CONSOLE_BYTES), np.uint8)
        sizes = [one.save(row) for one, row in zip(self._consoles, console, strict=True)]
        counters = {name: getattr(self, f"_{name}").copy() for name in _COUNTERS}
        return {"console": console, "console_size": np.array(sizes, np.int64), **counters}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on where `get_state` was called, with the same game and options.

        The next observation is that of the next step: the memory of the last one keeps what it shows.

        Raises:
            EnvironmentFailure: the state has other keys, shapes or dtypes, or isn't one of this game.
        """
        self._check_state(state)
        for console, row, size in zip(self._consoles, state["console"], state["console_size"].tolist(), strict=True):
            console.load(row[:size])
        for name in _COUNTERS:
            setattr(self, f"_{name}", state[name].copy())

    def _check_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        expected = self.get_state()
        if set(state) != set(expected):
            raise EnvironmentFailure(f"AtariEnvs.set_state expected the keys {sorted(expected)}, got {sorted(state)}.")
        for name, array in expected.items():
            if _kind(state[name]) != _kind(array):
                raise EnvironmentFailure(
                    f"AtariEnvs.set_state expected {name} as {_kind(array)}, got {_kind(state[name])}."
                )
        # The emulator ends the process at an action that it doesn't know.
        same_size = (state["console_size"] == expected["console_size"]).all()
        if not same_size or not np.isin(state["held"], self._codes).all() or state["steps"].min() < 0:
            raise EnvironmentFailure("AtariEnvs.set_state expected a state of this game and its actions, got another.")

    def _check_step(self, actions: NDArray[np.integer[Any]]) -> None:
        if not self._playing.all():
            raise EnvironmentFailure(
                "AtariEnvs.step expected every sub-environment to have an episode under way, got finished or never "
                f"reset ones at {np.flatnonzero(~self._playing)[:8].tolist()}."
            )
        if not isinstance(actions, np.ndarray) or actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ShapeError(
                f"AtariEnvs.step expected actions as an integer array [{self.num_envs}], got {_kind(actions)}."
            )
        if actions.min() < 0 or actions.max() >= len(self._codes):
            raise ConfigError(
                f"AtariEnvs.step expected actions of 0 to {len(self._codes) - 1}, got {actions.min()} to "
                f"{actions.max()}."
            )

    def _checked_rows(self, options: dict[str, Any] | None) -> NDArray[np.intp]:
        """int [n]: the sub-environments of the options' mask, or all."""
        if not options:
            return np.arange(self.num_envs)
        if set(options) != {"reset_mask"}:
            raise ConfigError(f"AtariEnvs.reset expected the option reset_mask, got {sorted(options)}.")
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ShapeError(f"AtariEnvs.reset expected reset_mask as bool [{self.num_envs}], got {_kind(mask)}.")
        return mask.nonzero()[0]

    def _checked_seeds(self, seed: Any) -> NDArray[np.int64]:
        """int64 [num_envs]."""
        if seed is None:
            return self.np_random.integers(_SEED_LIMIT, size=self.num_envs)
        if isinstance(seed, int | np.integer):
            if seed >= 0:
                super().reset(seed=int(seed))
            seed = [int(seed) + row for row in range(self.num_envs)]
        seeds = np.asarray(seed)
        if seeds.shape != (self.num_envs,) or seeds.dtype.kind not in "iu":
            raise ConfigError(
                f"AtariEnvs.reset expected {self.num_envs} integer seeds in [0, 2**63), got {_kind(seeds)}."
            )
        if seeds.min() < 0 or seeds.max() >= _SEED_LIMIT:
            raise ConfigError(f"AtariEnvs.reset expected seeds in [0, 2**63), got {seeds.min()} to {seeds.max()}.")
        return seeds.astype(np.int64)


def _random(seeds: NDArray[np.int64], first: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Numbers `first` [n] to `first` + count - 1 of the sequences of `seeds` [n]: int64 [n, count] in [0, 2**32)."""
    numbers = 1 + first[:, None] + np.arange(count)
    words = seeds.view(np.uint64)[:, None] + _WEYL * numbers.astype(np.uint64)
    for shift, factor in _MIX:
        words ^= words >> shift
        words *= factor
    # The high half is all that counts, to which the finaliser's last shift adds next to nothing.
    return (words >> np.uint64(32)).astype(np.int64)


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
