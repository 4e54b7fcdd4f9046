"""A trained policy in a program of yours. Neither MPI nor a launcher is needed.

hpcrl train ppo --preset cartpole --run-dir runs/cartpole
python examples/load_policy.py runs/cartpole
"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np

import hpcrl


def main(run_dir: str) -> None:
    """Play an episode, then eight side by side."""
    policy = hpcrl.load_policy(run_dir)  # best=True: the checkpoint of the best evaluation
    print(policy)

    env = gym.make(policy.env_id)
    observation, _ = env.reset(seed=1)
    policy.reset()  # at the beginning of every episode, for a policy that remembers
    episode_return, ended = 0.0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
        episode_return += float(reward)
        ended = terminated or truncated
    print(f"return {episode_return:g}")

    # A batch, [8, ...], is told from its shape. Sampled actions instead of the most likely ones.
    envs = gym.make_vec(policy.env_id, num_envs=8)
    observations, _ = envs.reset(seed=1)
    policy.reset()
    rewards = np.zeros(8)
    for _ in range(100):
        observations, reward, terminated, truncated, _ = envs.step(policy.act(observations, deterministic=False))
        policy.reset(terminated | truncated)
        rewards += reward
    print(f"rewards of 100 steps each: {rewards.tolist()}")


if __name__ == "__main__":
    main(sys.argv[1])
