"""Commands with a --config flag; errors are messages without a traceback."""

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from hive_jax.config import RunConfig, from_dict, nearest
from hive_jax.errors import ConfigError, HiveError, MissingInputError

# Config files import each other as `configs.NAME`, wherever a command is run.
sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

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
    known = set(_keys(schema))
    matches = [re.match(r"--?(?:no)?config\.([^=]+)", a) for a in arguments[1:]]
    overrides = [match[1] for match in matches if match]
    for key in overrides:
        if key not in known:
            raise ConfigError(f"config.{key} is not a key{nearest(key, known)}")
    try:
        rest = values(arguments)[1:]
        if holder.value is not None:
            holder.value.to_dict()  # a file that is not there shows only now
    except OSError as error:
        raise MissingInputError(f"--config: {error}") from None
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
        _explain_no_architecture(str(error), overrides)
        raise _cause(error) from None
    if rest:
        raise ConfigError(
            f"unexpected arguments {' '.join(rest)}; overrides are written "
            f"--config.KEY=VALUE"
        )
    if holder.value is None:
        raise ConfigError("--config is missing, e.g. --config configs/stage1.py")
    return arguments[:1]


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a config dataclass, those of optional groups too."""
    for name, kind in typing.get_type_hints(schema).items():
        arguments = typing.get_args(kind)
        group = arguments[0] if type(None) in arguments else kind  # of X | None: X
        if dataclasses.is_dataclass(group):
            yield from _keys(group, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain_no_architecture(message: str, overrides: list[str]) -> None:
    """Raises ConfigError for a size of a tower whose architecture is None."""
    for key in overrides:
        tower = re.match(r"model\.(encoder|decoder)\.", key)
        if tower and f'field "{tower[1]}" is None' in message:
            size = {"encoder": "L/16-384", "decoder": "gemma3_1b"}[tower[1]]
            raise ConfigError(
                f"config.{key} cannot be set alone: config.model.{tower[1]} is None, "
                "which takes the architecture of the initial weights. Name a size after "
                f"the config file, --config FILE:{tower[1]}={size}, or give all values "
                "in a config file. (For another image size alone there is "
                "--config.image_size.)"
            )


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
