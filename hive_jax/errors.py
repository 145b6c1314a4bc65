"""Errors that users can cause or fix. Each class has the exit code of the command.

A message says what was expected, what the value was, and what to do about it. Exit
codes follow sysexits.h; 75 asks the launcher to run the same command again.
"""


class HiveError(ValueError):
    """Base class of the errors that commands show as a message, without a traceback."""

    exit_code = 64


class ConfigError(HiveError):
    """Invalid argument, or configuration key or value."""

    exit_code = 64


class DataError(HiveError):
    """Data that cannot be read or trained on."""

    exit_code = 65


class MissingInputError(HiveError):
    """A file, folder or checkpoint does not exist."""

    exit_code = 66


class UnavailableError(HiveError):
    """A device, or an optional package, is not available."""

    exit_code = 69


class UnreachableError(HiveError):
    """A bucket does not answer; the same command may succeed later."""

    exit_code = 75


class NumericsError(HiveError):
    """A loss or gradient is not finite."""

    exit_code = 70


class OutputError(HiveError):
    """Output cannot be written, would overwrite, or is locked by another process."""

    exit_code = 73


class CheckpointError(HiveError):
    """A checkpoint or weight file is damaged, or does not fit the run."""

    exit_code = 78


# Exit code after a save on SIGTERM. Not an error: the same command resumes the run.
PREEMPTED = 75
