"""Commands with a --config flag, whose errors are messages and not tracebacks."""

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


def _parse(arguments: list[str], schema: type) -> list[str]:
    """absl's parser, with its errors as ConfigError; unknown keys come first."""
    known = set(_keys(to_dict(schema())))
    for argument in arguments[1:]:
        key = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if key and key[1] not in known:
            hint = nearest(key[1], known)
            raise ConfigError(f"config.{key[1]} is not a key{hint}")
    try:
        rest = flags.FLAGS(arguments)[1:]
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that is not there shows only now
    except OSError as error:
        raise MissingInputError(f"--config: {error}") from None
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
        raise _cause(error) from None
    if rest:
        raise ConfigError(
            f"unexpected arguments {' '.join(rest)}; overrides are written "
            f"--config.KEY=VALUE"
        )
    if _CONFIG.value is None:
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
