"""Reading YAML into frozen dataclasses: the one place where a mapping becomes settings.

A settings class is a frozen dataclass whose fields are made by `knob`, so that every knob carries its default, unit, range
and reason beside it. `read` turns a mapping into such a class or raises `SettingsError`, whose one line names the dotted key,
the value found and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

Settings = TypeVar("Settings")


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of range; the message is one line that names the dotted key."""


def knob(
    default: Any = dataclasses.MISSING,
    *,
    why: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    factory: Any = dataclasses.MISSING,
) -> Any:
    """Declare one setting: its default, its unit, its inclusive range or its choices, and why one would turn it."""
    metadata = {"why": why, "unit": unit, "low": low, "high": high, "choices": choices}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata, kw_only=True)
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; errors name the file and the line."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: there is no such file") from None
    except PermissionError:
        raise SettingsError(f"{path}: may not be read by the user that runs this, number {os.geteuid()}") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text, expected a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise SettingsError(f"{path}:{line} not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected a mapping of settings at the top level, found {_kind(content)}")
    return content


def read(cls: type[Settings], mapping: object, where: str = "") -> Settings:
    """Build the settings class `cls` from a mapping; `where` is the dotted key of the mapping itself ("" at the top)."""
    if not isinstance(mapping, Mapping):
        raise SettingsError(f"{where or 'the file'}: expected a mapping of settings, found {_shown(mapping)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # every caller passes a dataclass
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            raise SettingsError(f"{_dotted(where, key)}: unknown key{_nearest(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        dotted = _dotted(where, name)
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], dotted)
            _check(field, values[name], dotted)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{dotted}: is required ({field.metadata.get('why', 'no default')})")
    try:
        return cls(**values)
    except SettingsError as error:  # a check across several knobs names its key relative to the class
        raise SettingsError(_dotted(where, str(error))) from None


def to_mapping(settings: object) -> Any:
    """The plain mapping (lists, scalars) of a settings object, every default written out; `read` of it gives it back."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {field.name: to_mapping(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, tuple | list):
        return [to_mapping(item) for item in settings]
    if isinstance(settings, Mapping):
        return {str(key): to_mapping(value) for key, value in settings.items()}
    return settings


def canonical(settings: object) -> str:
    """The canonical JSON text of settings: keys sorted, no spaces, every default written out."""
    return json.dumps(to_mapping(settings), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(settings: object) -> str:
    """The SHA-256 of the canonical text, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()


def _convert(hint: Any, value: Any, dotted: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, dotted)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{dotted}: expected a list, found {_shown(value)}")
        return tuple(_convert(arguments[0], item, f"{dotted}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SettingsError(f"{dotted}: expected a mapping, found {_shown(value)}")
        return {
            _convert(arguments[0], key, dotted): _convert(arguments[1], item, _dotted(dotted, key))
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return read(hint, value, dotted)  # type: ignore[arg-type]  # is_dataclass has narrowed it to a class here
    return _convert_scalar(hint, value, dotted)


def _convert_union(options: tuple[Any, ...], value: Any, dotted: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    tagged = [option for option in rest if dataclasses.is_dataclass(option)]
    if tagged and len(tagged) == len(rest) and len(rest) > 1:
        return _convert_tagged(tagged, value, dotted)
    for option in rest[:-1]:
        try:
            return _convert(option, value, dotted)
        except SettingsError:
            continue
    return _convert(rest[-1], value, dotted)


def _convert_tagged(classes: list[Any], value: Any, dotted: str) -> Any:
    """Choose among settings classes by the value of their `kind` key."""
    by_kind = {cls.__dataclass_fields__["kind"].default: cls for cls in classes}
    if not isinstance(value, Mapping) or value.get("kind") not in by_kind:
        found = _shown(value.get("kind")) if isinstance(value, Mapping) else _shown(value)
        raise SettingsError(f"{_dotted(dotted, 'kind')}: expected one of {', '.join(by_kind)}; found {found}")
    return read(by_kind[value["kind"]], value, dotted)


def _convert_scalar(hint: Any, value: Any, dotted: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 (no dot) as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
        raise SettingsError(f"{dotted}: expected {names.get(hint, hint.__name__)}, found {_shown(value)}")
    return value


def _check(field: dataclasses.Field[Any], value: Any, dotted: str) -> None:
    facts = field.metadata
    items = value if isinstance(value, tuple) else (value,)
    for item in items:
        if facts.get("choices") and item not in facts["choices"]:
            expected = ", ".join(str(choice) for choice in facts["choices"])
            raise SettingsError(f"{dotted}: expected one of {expected}; found {_shown(item)}")
        if not isinstance(item, int | float) or isinstance(item, bool):
            continue
        low, high, unit = facts.get("low"), facts.get("high"), facts.get("unit", "")
        if not math.isfinite(item) or (low is not None and item < low) or (high is not None and item > high):
            span = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            span = "a finite number" if low is None and high is None else span
            raise SettingsError(f"{dotted}: expected {span}{f' {unit}' if unit else ''}, found {item}")


def _dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({_kind(value)})"
