"""The errors a user can cause. Each carries the exit code of the command.

A message says what was expected, what came, and what to do about it. Exit codes
follow sysexits.h; 75 asks the launcher to run the same command again.
"""


class HiveError(ValueError):
    """Base of all errors that are shown as a message, without a traceback."""

    exit_code = 64


class ConfigError(HiveError):
    """A configuration key or value that cannot be used."""

    exit_code = 64


class DataError(HiveError):
    """Data that cannot be trained on."""

    exit_code = 65


class MissingInputError(HiveError):
    """A file, folder or checkpoint that is not there."""

    exit_code = 66


class UnavailableError(HiveError):
    """A device, or a package for one, that is not there."""

    exit_code = 69


class NumericsError(HiveError):
    """A loss or gradient that is not finite."""

    exit_code = 70


class OutputError(HiveError):
    """A workdir that cannot be written, or that another run is using."""

    exit_code = 73


class CheckpointError(HiveError):
    """A checkpoint, or the weights in a file, that do not fit this run."""

    exit_code = 78


PREEMPTED = 75  # saved and stopped on SIGTERM: run the same command again
