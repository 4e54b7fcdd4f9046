"""The exceptions of hpcrl: one tree, each message one sentence with what was expected and what was got."""


class HpcrlError(Exception):
    """Base of every error that hpcrl raises on purpose; its message is meant for the user."""

    #: Exit status of the command line when this error ends it.
    exit_status = 1

    #: Raised on every rank at once, so that all can leave in order; any other error ends the job.
    on_all_ranks = False


class ConfigError(HpcrlError):
    """A configuration, environment or layout that can't be run."""

    exit_status = 2


class ShapeError(HpcrlError):
    """A tensor or buffer of another shape, dtype or memory layout than required."""


class RankError(HpcrlError):
    """A rank that died, hangs, or disagrees with the others."""


class TransportError(HpcrlError):
    """Unrolls or weights that arrived torn, twice, out of order or not at all."""


class CheckpointError(HpcrlError):
    """A checkpoint that is missing, damaged, hostile, or belongs to another run."""


class TrajectoryError(HpcrlError):
    """Recorded trajectories that are missing, damaged, hostile, or don't fit what they are wanted for."""


class EnvironmentFailure(HpcrlError):
    """An environment that breaks the Gymnasium contract or can't be restored."""
