"""The errors of a run, beside those of `data.errors`, each with its exit code."""

from data.errors import UserError


class DivergedError(UserError):
    """Too many non-finite steps in a row."""

    exit_code = 4


class CheckpointError(UserError):
    """No usable checkpoint."""

    exit_code = 5


class MismatchError(CheckpointError):
    """A checkpoint that is sound but of another state: other leaves, shapes, dtypes or format. Not damage."""

    exit_code = 2


class Stopped(UserError):
    """A signal ended the run after a committed save; the same command goes on."""

    exit_code = 75
