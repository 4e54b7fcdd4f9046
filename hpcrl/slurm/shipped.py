"""The batch scripts that the folder slurm/ holds, for people who write their own.

python -m hpcrl.slurm.shipped slurm      writes them anew
"""

from __future__ import annotations

import sys
from pathlib import Path

from hpcrl.slurm.job import Component, Job, Training
from hpcrl.slurm.script import scaling_script, training_script

_TRAINING = Training(("a2c", "--env", "CartPole-v1"))
_TITLE = """\
{about}

    sbatch [--time=12:00:00 ...] slurm/{name}.sbatch [{arguments}]

Options of sbatch on its command line win over the lines below. Before the time limit the work is saved and the job
requeues itself.
"""


def shipped_scripts() -> dict[str, str]:
    """Every script by its file's name."""
    scripts = {
        "train_cpu": _train(
            "train_cpu",
            "Trains on CPU nodes: one rank of every node learns, the others act.",
            Component(nodes=2, tasks_per_node=4),
        ),
        "train_gpu": _train(
            "train_gpu",
            "Trains on GPU nodes: a learner for every GPU, the other ranks of a node act for its learners.",
            Component(nodes=2, tasks_per_node=4, gpus_per_node=2, partition="gpu", exclusive=True),
        ),
        "train_het": _train(
            "train_het",
            "Trains on GPU nodes that learn and CPU nodes that act, in one MPI world.",
            Component(nodes=2, tasks_per_node=1, gpus_per_node=1, partition="gpu"),
            Component(nodes=2, tasks_per_node=2, partition="cpu"),
        ),
        "scaling": _scaling(),
    }
    return {f"{name}.sbatch": text for name, text in scripts.items()}


def _train(name: str, about: str, *components: Component) -> str:
    title = _TITLE.format(about=about, name=name, arguments="ALGORITHM --env ID ...")
    return training_script(Job("hpcrl", components), _TRAINING, title.splitlines())


def _scaling() -> str:
    about = (
        "Measures how training scales, a layout an element of a job array. Submit it from the root of the repository;"
        "\nthen: python -m benchmarks.plot results/scaling-*.jsonl -o scaling.png"
    )
    title = _TITLE.format(about=about, name="scaling", arguments="--mode weak --algorithm impala ...")
    job = Job("hpcrl-scaling", [Component(nodes=2, tasks_per_node=4, exclusive=True)], output="%x-%A_%a.log")
    return scaling_script(job, [(1, 1), (1, 2), (1, 4), (2, 8)], title.splitlines())


def main(folder: Path) -> None:
    """Write every script to `folder`."""
    for name, text in shipped_scripts().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
