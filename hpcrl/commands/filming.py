"""Films the first episodes of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcrl.envs.autoreset import LIFE_LOST
from hpcrl.envs.filmed import frame_of, frames_per_second, make_filmed
from hpcrl.envs.world import World
from hpcrl.noise import Purpose, seeds
from hpcrl.roles.loading import Loaded
from hpcrl.storage.video import Video, require_video
from hpcrl.trained_policy import TrainedPolicy


class Film:
    """Of one environment. Local.

    Args:
        path: ends in .mp4 or .gif.
        world: of which environment.

    Attributes:
        path: as given.
        frames: so far.
        fps: frames a second.

    Raises:
        ConfigError: the environment gives no frames here, or the film can't be written.
    """

    def __init__(self, path: Path, world: World) -> None:
        require_video(path)
        self.path, self._world = path, world
        self._env = make_filmed(world)
        self.frames, self.fps = 0, frames_per_second(self._env)

    def shoot(
        self, loaded: Loaded, episodes: int, seed: int, deterministic: bool, tick: Callable[[], None]
    ) -> NDArray[np.float64]:
        """Play the first episodes of the evaluation of `seed` again, and write the film.

        Args:
            loaded: who plays.
            episodes: how many.
            seed: of the evaluation.
            deterministic: take the most likely action instead of sampling.
            tick: called at every step.

        Returns:
            float64 [episodes], their returns.
        """
        policy = TrainedPolicy(loaded, self._env.observation_space, self._env.action_space, self._world.task or 0, seed)
        episode_seeds = seeds(seed, np.arange(episodes), 0, Purpose.EVALUATION_SEED).tolist()
        with Video(self.path, self.fps) as video:
            returns = [self._play(policy, video, one, deterministic, tick) for one in episode_seeds]
        self.frames = video.frames
        self._env.close()
        return np.array(returns)

    def _play(
        self, policy: TrainedPolicy, video: Video, seed: int, deterministic: bool, tick: Callable[[], None]
    ) -> float:
        """The return of the episode of `seed`, whose frames are added to the film."""
        observation, info = self._env.reset(seed=seed)
        policy.reset()
        video.add(frame_of(self._env))
        total, is_over = 0.0, False
        while not is_over:
            action = policy.act(observation, deterministic, info)
            observation, reward, terminated, truncated, info = self._env.step(action)
            video.add(frame_of(self._env))
            total += float(reward)
            life_lost = bool(info.get(LIFE_LOST, False))
            is_over = (terminated and not life_lost) or truncated
            if life_lost:
                policy.reset([True])
            tick()
        return total
