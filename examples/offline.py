"""Record what a run acts, read it with torch, and learn from it without an environment.

    python examples/offline.py runs/recorded runs/cloned

The same by command lines, the first two of them:

    hpcrl train a2c --env CartPole-v1 --record-trajectories --run-dir runs/recorded
    hpcrl train bc --from-trajectories runs/recorded --min-return 200 --run-dir runs/cloned
"""

from __future__ import annotations

from pathlib import Path

import tyro
from torch.utils.data import DataLoader

import hpcrl
from hpcrl.storage import TrajectoryDataset


def main(
    recorded: tyro.conf.Positional[Path],
    cloned: tyro.conf.Positional[Path],
    env_steps: int = 200_000,
    min_return: float = 200.0,
) -> None:
    """Record a2c, describe what there is, and clone its better episodes."""
    recording = hpcrl.A2CConfig(
        env="CartPole-v1", record_trajectories=True, total_env_steps=env_steps, run_dir=recorded
    )
    train(recording)

    # An item is an unroll of one environment; a batch has one more axis, the first: [32, T, ...].
    dataset = TrajectoryDataset(recorded)
    steps = reward = 0.0
    for batch in DataLoader(dataset, batch_size=32, collate_fn=TrajectoryDataset.collate):
        valid = batch["valid"]  # False in rows in which no step was made
        steps += float(valid.sum())
        reward += float(batch["reward"][valid].sum())
    print(f"{len(dataset)} unrolls, {steps:,.0f} steps, mean reward {reward / steps:.2f}")

    # Environment, model, discount and length of unrolls must be those of the recording: the command line sees to it.
    total = 5 * env_steps  # every step is learned from several times
    cloning = hpcrl.BCConfig(
        env=recording.env,
        gamma=recording.gamma,
        from_trajectories=recorded,
        min_return=min_return,
        total_env_steps=total,
        eval_every=total,
        eval_deterministic=True,
        run_dir=cloned,
    )
    train(cloning)


def train(config: hpcrl.TrainConfig) -> None:
    """Run to the end, and print the last of what is reported."""
    with hpcrl.Trainer(config) as trainer:
        rows = list(trainer)
    returns = {name: round(value, 1) for name, value in rows[-1].items() if name.endswith("return_mean")}
    print(f"{config.algorithm}: {rows[-1]['env_steps']:,.0f} env steps, {returns}")


if __name__ == "__main__":
    tyro.cli(main)
