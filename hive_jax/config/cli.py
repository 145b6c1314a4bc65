"""Command-line configs: `--config FILE[:ARGUMENTS]` and `--config.KEY=VALUE`."""

import argparse
import dataclasses
import importlib.machinery
import importlib.util
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

import hive_jax
from hive_jax.config import ProbeConfig, RunConfig, from_dict, nearest
from hive_jax.config.key_help import describe_keys
from hive_jax.console import show
from hive_jax.errors import ConfigError, HiveError, MissingInputError

_KEYS_HINT = "keys of a config, with values and descriptions: --config FILE --help"
_EXPECTED = "a ConfigDict of ml_collections, as the files in configs/ return"


class _ConfigParser(argparse.ArgumentParser):
    """A parser whose --help lists the keys of --config too, wherever that stands."""

    def __init__(self, *, schema: type, **options):
        super().__init__(**options, add_help=False)
        self._schema = schema
        self.add_argument(
            "-h", "--help", action="store_true", help="show this help and exit"
        )

    def parse_known_args(self, args=None, namespace=None):
        options, overrides = super().parse_known_args(args, namespace)
        if options.help:
            text = self.format_help() + "\n"
            if options.config is None:
                text += _KEYS_HINT
            else:
                values = _load(options.config, overrides, self._schema).to_dict()
                text += f"keys of --config {options.config}:\n"
                text += describe_keys(values, self._schema)
            show(text)
            self.exit()
        return options, overrides


def config_parser(
    module: str,
    about: str,
    examples: str,
    default: str | None = None,
    schema: type = RunConfig,
) -> argparse.ArgumentParser:
    """Returns a parser for `python -m MODULE` with a --config flag; see `parse`.

    Args:
      module: name of the command's module.
      about: description in --help, the module's docstring.
      examples: end of --help.
      default: default of --config; None for a required flag.
      schema: RunConfig or ProbeConfig, for --help.
    """
    parser = _ConfigParser(
        schema=schema,
        prog=f"python -m {module}",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        default=default,
        metavar="FILE[:ARGUMENTS]",
        help="config file, or name of a config of the package such as stage1; any key "
        "is overridden by --config.KEY=VALUE"
        + (f" (default: {default})" if default else ""),
    )
    return parser


def parse(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    schema: type = RunConfig,
):
    """Parses a command line.

    Args:
      parser: from `config_parser`.
      arguments: without the program's name; None for sys.argv.
      schema: RunConfig or ProbeConfig.

    Returns:
      The parsed options, and the config with its overrides applied.

    Raises:
      ConfigError: no config, an error in its file, an unknown key, or a value that
        does not fit.
      MissingInputError: the config file does not exist.
    """
    options, overrides = parser.parse_known_args(arguments)
    return options, read_config(options.config, overrides, schema)


def get_config(name: str) -> ConfigDict:
    """Returns the config of `--config NAME`, to be changed and trained.

    Args:
      name: path of a config file, or name of one of the package, optionally with
        ":ARGUMENTS": "stage1", "stage1:fusion=cascaded", "configs/stage3.py:paper".

    Raises:
      ConfigError: unknown arguments, or an error in the file.
      MissingInputError: the config file does not exist.
    """
    return _load(name, [], RunConfig)


def read_config(file: str | None, overrides: Sequence[str], schema: type = RunConfig):
    """Returns the validated config of a file.

    Args:
      file: as for `get_config`; None for a missing flag, which is an error.
      overrides: "--config.KEY=VALUE" each.
      schema: RunConfig or ProbeConfig.

    Raises:
      ConfigError: no file, an error in it, an unknown key, a value that does not fit,
        or another argument.
      MissingInputError: the config file does not exist.
    """
    if file is None:
        raise ConfigError("--config is missing, e.g. --config configs/stage1.py")
    return from_dict(_load(file, overrides, schema).to_dict(), schema)


def _load(file: str, overrides: Sequence[str], schema: type) -> ConfigDict:
    """Returns the ConfigDict of a file with overrides, through ml_collections' flag."""
    logging.set_verbosity(logging.WARNING)  # it logs every override
    name, colon, variant = file.partition(":")
    path = _find(name)
    config = _run(path, [variant] if colon else [])
    _require_schema(config, schema, path)
    _require_keys(overrides, schema)
    line = ["hive_jax", *overrides]
    # Flags of its own: absl's global ones can be defined and parsed only once.
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=line, lock_config=True
        )
        rest = values(line)[1:]
        config.to_dict()  # references between values are resolved only now
    # Of any type: references compute values by code of the file.
    except Exception as error:  # noqa: BLE001
        _explain_no_architecture(str(error), overrides)
        raise _cause(error, path) from None
    if rest:
        raise ConfigError(
            f"unexpected arguments {' '.join(rest)}; overrides are written "
            f"--config.KEY=VALUE"
        )
    return config


def _run(path: Path, arguments: list[str]) -> ConfigDict:
    """Returns the result of a config file's get_config.

    Raises:
      ConfigError: the code fails, or returns something else than a ConfigDict; with the
        file, and the line if there is one.
    """
    loader = importlib.machinery.SourceFileLoader("hive_jax_config_file", str(path))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(loader.name, loader)
    )
    sys.modules[loader.name] = module  # where dataclasses of the file look for it
    try:
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(
                f"{path} has no get_config(); expected one that returns {_EXPECTED}"
            )
        config = module.get_config(*arguments)
    except HiveError:
        raise
    # The file is code of the user, so of any type; sys.exit() too.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        # Without the file and line, which str() of a SyntaxError repeats.
        message = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(
            f"{_where(error, path)}: {type(error).__name__}: {message}"
        ) from None
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{path}: get_config() returned {type(config).__name__}; expected "
            f"{_EXPECTED}"
        )
    return config


def _where(error: BaseException, path: Path) -> str:
    """Returns "FILE, line N" of the innermost line of a file that led to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f"{path}, line {lines[-1]}" if lines and lines[-1] else str(path)


def _find(name: str) -> Path:
    """Returns the config file of a path, or of a name such as "stage1"."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    package = Path(hive_jax.__file__).parent
    # Inside the package in a wheel, beside it in a checkout.
    folders = (package / "configs", package.parent / "configs")
    known = {file.stem: file for folder in folders for file in folder.glob("*.py")}
    if name in known:
        return known[name]
    raise MissingInputError(
        f"--config {name}: no such file, and no config of the package; expected a "
        f"path or one of {', '.join(sorted(known))}{nearest(name, known)}"
    )


def _require_schema(config: ConfigDict, schema: type, path: Path) -> None:
    """Raises ConfigError for the config of another command."""
    commands = {RunConfig: "training", ProbeConfig: "probes"}
    for other, command in commands.items():
        names = {field.name for field in dataclasses.fields(other)}
        if other is not schema and set(config) == names:
            raise ConfigError(
                f"{path} is a config of {command}; expected one of {commands[schema]}"
            )


def _require_keys(overrides: Sequence[str], schema: type) -> None:
    """Raises ConfigError for an unknown key, with a suggestion that absl has not."""
    known = set(_keys(schema))
    for argument in overrides:
        key = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if key and key[1] not in known:
            raise ConfigError(f"config.{key[1]} is not a key{nearest(key[1], known)}")


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of a config dataclass, with those of optional groups."""
    for name, kind in typing.get_type_hints(schema).items():
        arguments = typing.get_args(kind)
        group = arguments[0] if type(None) in arguments else kind  # of X | None: X
        if dataclasses.is_dataclass(group):
            yield from _keys(group, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain_no_architecture(message: str, overrides: Sequence[str]) -> None:
    """Raises ConfigError if an override sets one value of an architecture of None."""
    for argument in overrides:
        key = re.match(r"--?config\.(model\.(encoder|decoder)\.[^=]+)", argument)
        if key and f'field "{key[2]}" is None' in message:
            size = {"encoder": "L/16-384", "decoder": "gemma3_1b"}[key[2]]
            raise ConfigError(
                f"config.{key[1]} cannot be set alone: config.model.{key[2]} is None, "
                "the architecture of the initial weights. Name a size after the config "
                f"file, --config FILE:{key[2]}={size}, or give all values in a config "
                "file. (For another image size alone there is --config.image_size.)"
            )


def _cause(error: BaseException, path: Path) -> HiveError:
    """Returns the HiveError that caused an error of overrides or references, or else
    its message as a ConfigError."""
    message = str(error)
    if not isinstance(error, flags.Error):
        message = f"{path}: a value cannot be computed: {type(error).__name__}: {error}"
    cause, link = ConfigError(message), error
    while link is not None:
        cause = link if isinstance(link, HiveError) else cause
        link = link.__cause__ or link.__context__
    return cause
