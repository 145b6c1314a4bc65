"""Commands with a --config flag, whose errors are messages and not tracebacks."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from hive_jax.config import RunConfig, from_dict, nearest, to_dict
from hive_jax.errors import ConfigError, HiveError, MissingInputError

# Config files import each other as `configs.NAME`, wherever a command is run.
sys.path.append(str(Path(__file__).resolve().parent.parent))

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with ':arguments' for its variants.", lock_config=True
)


def run(main: Callable[[Any], int], schema: type = RunConfig) -> None:
    """Parses the command line and exits with main(config), or an error's code; the
    config is one of `schema`."""

    def checked(unused_arguments) -> int:
        logging.set_verbosity(logging.WARNING)
        return _reported(lambda: main(from_dict(_CONFIG.value.to_dict(), schema)))

    app.run(checked, flags_parser=lambda line: _reported(lambda: _parse(line, schema)))


def _reported(action: Callable):
    try:
        return action()
    except HiveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parse(
    arguments: list[str], schema: type, values=flags.FLAGS, holder=_CONFIG
) -> list[str]:
    """absl's parser, with its errors as ConfigError; unknown keys come first."""
    known = set(_keys(to_dict(schema())))
    for argument in arguments[1:]:
        key = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if key and key[1] not in known:
            hint = nearest(key[1], known)
            raise ConfigError(f"config.{key[1]} is not a key{hint}")
    try:
        rest = values(arguments)[1:]
        if holder.value is not None:
            holder.value.to_dict()  # a file that is not there shows only now
    except OSError as error:
        raise MissingInputError(f"--config: {error}") from None
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
        raise _cause(error) from None
    if rest:
        raise ConfigError(
            f"unexpected arguments {' '.join(rest)}; overrides are written "
            f"--config.KEY=VALUE"
        )
    if holder.value is None:
        raise ConfigError("--config is missing, e.g. --config configs/stage1.py")
    return arguments[:1]


def _keys(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _cause(error: BaseException) -> HiveError:
    """The project's own error behind a parser's, or the parser's message as one."""
    found, link = ConfigError(str(error)), error
    while link is not None:
        found = link if isinstance(link, HiveError) else found
        link = link.__cause__ or link.__context__
    return found


def config_parser(module: str, about: str, examples: str) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE` that knows --config; read with `read_config`.

    Args:
      module: of the command.
      about: its docstring.
      examples: shown at the end of --help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARGUMENTS]",
        help="config file; any key is overridden by --config.KEY=VALUE",
    )
    return parser


def read_config(file: str, overrides: list[str], schema: type = RunConfig):
    """The config of a file, of type `schema`.

    Args:
      file: path of the file, with ":ARGUMENTS" for its variants.
      overrides: "--config.KEY=VALUE" each, as `parse_known_args` leaves them.

    Raises:
      ConfigError: an override is none, or does not fit.
      MissingInputError: the file is not there.
    """
    line = ["hive_jax", f"--config={file}", *overrides]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, sys_argv=line, lock_config=True
    )
    _parse(line, schema, values, holder)
    return from_dict(holder.value.to_dict(), schema)
