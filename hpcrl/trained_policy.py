"""What a run has trained, for programs of others: a policy that acts in Gymnasium's terms, without MPI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from hpcrl.envs.codec import ActionReader, ObservationWriter, leaf_views
from hpcrl.envs.factory import make_vector_env
from hpcrl.envs.tasks import NamedTask
from hpcrl.errors import ConfigError, ShapeError
from hpcrl.noise import Purpose, uniforms
from hpcrl.roles.loading import Loaded, load
from hpcrl.roles.memory import ActingMemory
from hpcrl.spaces import ACTION_MASK
from hpcrl.storage.checkpoints import find_checkpoint
from hpcrl.unroll import Memory


def load_policy(
    run_dir_or_checkpoint: str | Path, best: bool = False, *, task: int = 0, seed: int = 0
) -> TrainedPolicy:
    """The policy of a run, ready to act. Local; neither MPI nor a launcher is needed.

        policy = hpcrl.load_policy("runs/ppo-CartPole-v1-seed1-20260101-120000")
        observation, info = env.reset(seed=1)
        policy.reset()
        action = policy.act(observation)

    The environments of the run are made, to learn their spaces, and closed again: their packages must be installed.

    Args:
        run_dir_or_checkpoint: a run directory, whose newest whole checkpoint is taken, or one checkpoint file.
        best: the best checkpoint of the directory instead of the newest.
        task: of a run of several tasks, the number of the one that is played, in the order of `--env`.
        seed: of actions that are sampled, 0 <= seed < 2**64.

    Raises:
        CheckpointError: there is no such run or checkpoint, or it is damaged or of another model.
        ConfigError: its environment can't be made here, or there is no such task.
    """
    loaded = load(find_checkpoint(Path(run_dir_or_checkpoint), best))
    if not 0 <= task < len(loaded.worlds):
        raise ConfigError(f"task must be 0 to {len(loaded.worlds) - 1} for {loaded.path}, got {task}")
    envs = make_vector_env(loaded.worlds[task], 1)
    envs.close()
    return TrainedPolicy(loaded, envs.single_observation_space, envs.single_action_space, task, seed)


class TrainedPolicy:
    """Acts on observations as an environment gives them, one or a batch; see `load_policy`.

    Args:
        loaded: the policy.
        observation_space, action_space: Gymnasium's, of one environment.
        task: number of the task that is played.
        seed: of actions that are sampled.

    Attributes:
        config: of the run.
        env_id: of the environment that it plays.
        env_steps: steps that the run had made.
        checkpoint: path of the checkpoint.
        observation_space, action_space: Gymnasium's, of one environment; `str` gives them in words.
    """

    def __init__(
        self, loaded: Loaded, observation_space: gym.Space, action_space: gym.Space, task: int = 0, seed: int = 0
    ) -> None:
        self.config, self.env_steps, self.checkpoint = loaded.config, loaded.env_steps, loaded.path
        self.env_id = loaded.worlds[task].env_id
        self.observation_space, self.action_space = observation_space, action_space
        self._policy, self._task, self._number, self._seed = loaded.policy, loaded.task, task, seed
        self._own_task = loaded.task.unnamed if isinstance(loaded.task, NamedTask) else loaded.task
        self._reader = ActionReader(action_space, loaded.task.action)
        self._memory: ActingMemory | None = None
        self._starts: NDArray[np.bool_] = np.zeros(0, np.bool_)
        # A stream of noise for every episode, as in an evaluation.
        self._first_stream, self._steps = 0, 0

    def __str__(self) -> str:
        """One line: what it was trained by, what it observes and does."""
        remembers = ", and remembers" if self._policy.state_size or self._policy.num_history else ""
        line = (
            f"{self.config.algorithm} on {self.env_id} after {self.env_steps:,} env steps: "
            f"observes {self.observation_space}, does {self.action_space}{remembers}"
        )
        # Bounds of many numbers are printed over several lines.
        return " ".join(line.split())

    def reset(self, ended: ArrayLike | None = None) -> None:
        """Forget what was before: an episode begins with the next observation.

        Needed where the policy remembers (a recurrent core, stacked frames); harmless elsewhere.

        Args:
            ended: bool [B], the environments of the batch whose episode is over; by default all, and the next batch may
                have another size.

        Raises:
            ShapeError: another shape than the batch's.
        """
        if ended is None:
            if self._memory is not None:
                self._first_stream += len(self._starts)
            self._memory, self._steps = None, 0
            return
        rows = np.asarray(ended, np.bool_)
        if rows.shape != self._starts.shape:
            raise ShapeError(f"reset expected ended as bool {list(self._starts.shape)}, got {list(rows.shape)}")
        self._starts |= rows

    def act(self, observation: Any, deterministic: bool = True, info: Mapping[str, Any] | None = None) -> Any:
        """What to do next. Whether it is one observation or a batch is told from its shape.

        Args:
            observation: an element of `observation_space`; or B >= 1 of them as Gymnasium's vector environments give
                them: arrays with one more axis, the first, in the same Dict or Tuple. Any dtype that can be cast to the
                space's. Of a game of Atari single frames uint8 [84, 84]; the policy stacks them itself.
            deterministic: take the most likely action instead of sampling.
            info: what the environment told beside the observation; needed only where it has the action mask, under
                "action_mask": int8 [choices], or [B, choices].

        Returns:
            an element of `action_space` as `env.step` takes it: its dtype and shape, counted from its start, within its
            bounds; or B of them, with one more axis, the first, as a vector environment's `step` takes it.

        Raises:
            ShapeError: the observation has another form than the space's, its mask is missing, or the batch another
                size than the one whose episodes are remembered.
        """
        size = self._batch_size(observation)
        stored = self._stored(observation, size, info or {})
        memory = self._remember(stored)
        with torch.inference_mode():
            parameters, memory.state = self._policy.step(memory.seen(torch.from_numpy(stored)), memory.state)
            if deterministic:
                action = self._policy.head.mode(parameters)
            else:
                action = self._policy.head.sample(parameters, torch.from_numpy(self._noise(len(stored))))
        self._steps += 1
        return self._reader.rows(action.numpy())[0] if size is None else self._reader.batch(action.numpy())

    def _batch_size(self, observation: Any) -> int | None:
        """B of a batch; None for one observation."""
        try:
            parts = list(_parts(self.observation_space, observation))
            leading = {_leading(array.shape, leaf.shape or ()) for leaf, array in parts}
        except (KeyError, IndexError, TypeError, ValueError):
            leading = set()
        if leading == {()}:
            return None
        if len(leading) == 1 and len(lead := leading.pop()) == 1 and lead[0]:
            return lead[0]
        raise ShapeError(f"act expected an element of {self.observation_space} or a batch, got {_form(observation)}")

    def _stored(self, observation: Any, size: int | None, info: Mapping[str, Any]) -> NDArray:
        """Observations [B, *shape] in their stored form, with the number of the task where the policy sees that."""
        own, count = self._own_task, 1 if size is None else size
        if own.info_mask_size and ACTION_MASK not in info:
            raise ShapeError(f"act expected info with {ACTION_MASK!r}, [{own.info_mask_size}] an observation, got none")
        said = {ACTION_MASK: np.asarray(info[ACTION_MASK])} if own.info_mask_size else {}
        memory: NDArray = np.zeros((count, *own.observation.shape), own.observation.dtype)
        writer = ObservationWriter(self.observation_space, own.observation, memory)
        if size is None:
            writer.write(0, observation, said)
        else:
            writer.write_batch(observation, said)
        return self._named(memory) if isinstance(self._task, NamedTask) else memory

    def _named(self, observations: NDArray) -> NDArray[np.uint8]:
        """Observations [B, ...] and the number of their task, its last leaf: uint8 [B, bytes]."""
        named = np.zeros((len(observations), self._task.observation.nbytes), np.uint8)
        *views, number = leaf_views(self._task.observation, named).values()
        own = self._own_task.observation
        parts = leaf_views(own, observations).values() if own.leaves else [observations]
        for view, part in zip(views, parts, strict=True):
            view[...] = part
        number[...] = self._number
        return named

    def _remember(self, stored: NDArray) -> ActingMemory:
        """The memory of the running episodes, which goes on with the newest observations [B, *shape]."""
        memory = self._memory
        if memory is not None and memory.is_needed:
            if len(stored) != len(self._starts):
                raise ShapeError(f"act expected {len(self._starts)} observations until reset(), got {len(stored)}")
            memory.observe(stored, self._starts)
        else:
            spec = Memory(self._policy.state_size, self._policy.num_history)
            memory = self._memory = ActingMemory(self._task.observation, spec, stored)
        self._starts = np.zeros(len(stored), np.bool_)
        return memory

    def _noise(self, count: int) -> NDArray[np.float32]:
        streams = self._first_stream + np.arange(count)
        return uniforms(self._seed, streams, self._steps, Purpose.EVALUATION_ACTION, self._policy.head.noise_size)


def _parts(space: gym.Space, element: Any) -> Iterator[tuple[gym.Space, NDArray]]:
    """The leaves of a space, and what an element or a batch has of each."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, element[key])
    elif isinstance(space, spaces.Tuple):
        for number, part in enumerate(space.spaces):
            yield from _parts(part, element[number])
    else:
        yield space, np.asarray(element)


def _leading(whole: tuple[int, ...], own: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an array of shape `whole` before those of its elements; ValueError where it holds others."""
    split = len(whole) - len(own)
    if split < 0 or whole[split:] != own:
        raise ValueError
    return whole[:split]


def _form(element: Any) -> str:
    """Types and shapes of what was given, in words."""
    if isinstance(element, Mapping):
        return "{" + ", ".join(f"{key}: {_form(part)}" for key, part in element.items()) + "}"
    if isinstance(element, tuple):
        return "(" + ", ".join(map(_form, element)) + ")"
    return f"{type(element).__name__} {list(np.shape(element))}"
