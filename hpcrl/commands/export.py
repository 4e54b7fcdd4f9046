"""`hpcrl export RUN_DIR`: what a run has learned or recorded, for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hpcrl.errors import ConfigError
from hpcrl.roles.resume import checkpoint_config
from hpcrl.storage.checkpoints import Checkpoint, find_checkpoint
from hpcrl.storage.minari import Form, export_minari
from hpcrl.storage.safetensors import write_safetensors
from hpcrl.storage.shard_table import Kind


@dataclass(frozen=True)
class ExportOptions:
    """Write what a run has learned or recorded for other programs; one kind of file at a time."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="Run directory, or one checkpoint file.")]
    safetensors: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help="Weights by parameter name, with the configuration.")
    ] = None
    best: Annotated[bool, tyro.conf.arg(help="Of --safetensors: the best checkpoint instead of the newest.")] = False
    minari: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help="Recorded whole episodes as a Minari dataset below this folder.")
    ] = None
    copy: Annotated[bool, tyro.conf.arg(help="Of --minari: a dataset that stands alone; so it is anyway.")] = False
    link: Annotated[
        bool,
        tyro.conf.arg(
            help="Of --minari: a view of the run's own files instead of a copy; DIR and the run directory can be moved "
            "only together."
        ),
    ] = False
    evaluation: Annotated[
        bool, tyro.conf.arg(help="Of --minari: the episodes of evaluations instead of those of training.")
    ] = False
    dataset_id: Annotated[
        str | None,
        tyro.conf.arg(metavar="ID", help="Of --minari: NAMESPACE/NAME-v0 (by default hpcrl/ENV-ALGORITHM-v0)."),
    ] = None


def export(arguments: Sequence[str]) -> int:
    """Export; the exit status."""
    options = tyro.cli(ExportOptions, prog="hpcrl export", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,))
    asked_for = {"--safetensors": options.safetensors, "--minari": options.minari}
    if sum(path is not None for path in asked_for.values()) != 1:
        raise ConfigError(f"hpcrl export needs exactly one of: {', '.join(asked_for)}")
    _require_use(options)
    if options.safetensors is not None:
        checkpoint = find_checkpoint(options.run_dir, options.best)
        _export_weights(checkpoint, options.safetensors)
    if options.minari is not None:
        _export_episodes(options, options.minari)
    return 0


def _require_use(options: ExportOptions) -> None:
    """ConfigError for options of another export than the one that is asked for."""
    if options.copy and options.link:
        raise ConfigError("hpcrl export needs --copy or --link, not both")
    if options.minari is not None and options.best:
        raise ConfigError("--best is for --safetensors")
    of_minari = options.copy or options.link or options.evaluation or options.dataset_id is not None
    if options.minari is None and of_minari:
        raise ConfigError("--copy, --link, --evaluation and --dataset-id are for --minari")


def _export_episodes(options: ExportOptions, directory: Path) -> None:
    form: Form = "link" if options.link else "copy"
    kind: Kind = "evaluation" if options.evaluation else "training"
    done = export_minari(options.run_dir, directory, form, options.dataset_id, kind)
    print(f"{done.path}: {done.num_episodes:,} whole episodes, {done.num_steps:,} steps")
    if done.num_unfinished or done.num_gaps:
        print(f"left out: {done.num_unfinished:,} episodes without an end, {done.num_gaps:,} with steps missing")
    if not done.has_env_spec:
        print("Minari can't make its environment, which has no registration that JSON can hold")
    print(f"load it by minari.load_dataset({done.dataset_id!r}) under MINARI_DATASETS_PATH={directory}")


def _export_weights(checkpoint: Checkpoint, path: Path) -> None:
    config = checkpoint_config(checkpoint)
    # Scales of observations are parameters like the others.
    weights = checkpoint.group("weights")
    names = ("format_version", "env_steps", "learner_updates", "config")
    about = {name: str(checkpoint.attributes[name]) for name in names if name in checkpoint.attributes}
    write_safetensors(path, weights, about | {"algorithm": config.algorithm, "env": config.env})
    print(f"{path}: {len(weights)} arrays of {checkpoint.path} ({config.algorithm} on {config.env})")
