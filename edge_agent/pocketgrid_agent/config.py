"""Options from a file and from the environment: the same names as on the command line, which counts more than both.

The file is TOML and flat: ``min-battery = 40`` is what ``--min-battery 40`` is; options that may be repeated are lists,
labels may be a table. In the environment the same is ``POCKETGRID_AGENT_MIN_BATTERY=40``, and counts more than the
file. What nobody knows is refused by name, with what was probably meant: a rule that is silently ignored spares no
battery.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PREFIX = "POCKETGRID_AGENT_"
_NOT_OPTIONS = {"help", "version", "config", "command"}


class ConfigError(ValueError):
    """A file or a variable says something that is no option, or no value of it; the message names both."""


def apply_defaults(parser: argparse.ArgumentParser, file: Path | None, environment: Mapping[str, str]) -> None:
    """Make what file and environment say the parser's defaults.

    Args:
        parser: of the command line.
        file: TOML; None if there is none.
        environment: variables.

    Raises:
        ConfigError: something in them is wrong.
    """
    options = {
        option[2:]: action
        for action in parser._actions  # noqa: SLF001  # argparse offers no other way to ask what it knows
        for option in action.option_strings
        if option.startswith("--") and not option.startswith("--no-") and action.dest not in _NOT_OPTIONS
    }
    said: dict[str, Any] = {}
    for name, value in _read(file).items():
        action = _known(options, name, str(file))
        said[action.dest] = _value(action, value, f"{file}: {name}")
    for variable, text in environment.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower().replace("_", "-")
            action = _known(options, name, variable)
            items: Any = text.split(";") if isinstance(action, argparse._AppendAction) else text  # noqa: SLF001
            said[action.dest] = _value(action, items, variable)
    parser.set_defaults(**said)


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _known(options: Mapping[str, argparse.Action], name: str, where: str) -> argparse.Action:
    action = options.get(name)
    if action is None:
        close = difflib.get_close_matches(name, options, 1)
        hint = f"; did you mean {close[0]}?" if close else "; `pocketgrid-agent --help` lists all"
        raise ConfigError(f"{where}: there is no option {name}{hint}")
    return action


def _value(action: argparse.Action, value: object, where: str) -> object:
    if isinstance(action, argparse.BooleanOptionalAction | argparse._StoreTrueAction):  # noqa: SLF001
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        flag = value if isinstance(value, bool) else truth.get(str(value).lower())
        if flag is None:
            raise ConfigError(f"{where}: {value!r} is neither true nor false")
        return flag
    if isinstance(action, argparse._AppendAction):  # noqa: SLF001
        items: Iterable[object] = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            items = [f"{key}={item}" for key, item in value.items()]
        return [_one(action, item, where) for item in items if item != ""]
    return _one(action, value, where)


def _one(action: argparse.Action, value: object, where: str) -> object:
    if isinstance(value, dict | list):
        raise ConfigError(f"{where}: one value is wanted, not {value!r}")
    if isinstance(value, bool):
        if value:
            raise ConfigError(f"{where}: true is no value of it; say how much")
        value = "off"
    text = str(value)
    try:
        converted: object = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if action.choices is not None and converted not in action.choices:
        raise ConfigError(f"{where}: {text!r} is none of {', '.join(map(str, action.choices))}")
    return converted
