"""YAML becomes frozen dataclasses, or one clear line that names the key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from cxrbase_model.settings import SettingsError, digest, knob, load_yaml, read, to_mapping


@dataclass(frozen=True)
class Inner:
    rate: float = knob(0.5, low=0.0, high=1.0, why="a rate")


@dataclass(frozen=True)
class Left:
    kind: str = knob("left", choices=("left",), why="tag")
    size: int = knob(1, low=1, unit="pixels", why="a size")


@dataclass(frozen=True)
class Right:
    kind: str = knob("right", choices=("right",), why="tag")


@dataclass(frozen=True)
class Outer:
    name: str = knob(why="a name")
    inner: Inner = knob(factory=Inner, why="inner settings")
    sides: tuple[Left | Right, ...] = knob((), why="tagged settings")
    limit: int | None = knob(None, low=3, why="an optional limit")
    colours: dict[str, str] = knob(factory=dict, why="a mapping")
    folder: Path = knob(Path(), why="a path")


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        ({}, "name: is required (a name)"),
        ({"name": "a", "inner": {"rat": 1}}, "inner.rat: unknown key; did you mean rate?"),
        ({"name": "a", "zzz": 1}, "zzz: unknown key; known keys: name, inner, sides, limit, colours, folder"),
        ({"name": 3}, "name: expected text, found 3 (int)"),
        ({"name": "a", "inner": {"rate": "high"}}, "inner.rate: expected a number, found 'high' (str)"),
        ({"name": "a", "inner": {"rate": 1.5}}, "inner.rate: expected 0.0 to 1.0, found 1.5"),
        ({"name": "a", "inner": {"rate": float("nan")}}, "inner.rate: expected 0.0 to 1.0, found nan"),
        ({"name": "a", "inner": {"rate": True}}, "inner.rate: expected a number, found True (bool)"),
        ({"name": "a", "inner": [1]}, "inner: expected a mapping of settings, found [1] (list)"),
        ({"name": "a", "limit": 2}, "limit: expected at least 3, found 2"),
        ({"name": "a", "sides": [{"kind": "up"}]}, "sides[0].kind: expected one of left, right; found 'up' (str)"),
        ({"name": "a", "sides": [{"kind": "left", "size": 0}]}, "sides[0].size: expected at least 1 pixels, found 0"),
        ({"name": "a", "sides": {"kind": "left"}}, "sides: expected a list, found {'kind': 'left'} (dict)"),
        ({"name": "a", "colours": {"x": 1}}, "colours.x: expected text, found 1 (int)"),
        ({"name": "a", "folder": 1}, "folder: expected a path, found 1 (int)"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_dotted_key(mapping: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(Outer, mapping)
    assert str(caught.value) == line


def test_settings_survive_the_way_to_a_mapping_and_back() -> None:
    settings = read(Outer, {"name": "a", "inner": {"rate": "1e-4"}, "sides": [{"kind": "left"}, {"kind": "right"}]})
    assert settings.inner.rate == 1e-4
    assert settings.sides == (Left(), Right())
    again = read(Outer, {**to_mapping(settings), "folder": "."})
    assert again == settings


def test_the_digest_depends_on_values_and_not_on_their_order_or_on_written_defaults() -> None:
    plain = read(Inner, {})
    assert digest(plain) == digest(read(Inner, {"rate": 0.5}))
    assert digest(plain) != digest(read(Inner, {"rate": 0.25}))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: [1", "line 1: not YAML"),
        (b"- 1\n", "expected a mapping"),
        (b"\xff\xfe\xff", "is not UTF-8"),
        (b"", "found nothing"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=problem) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_may_not_be_read_is_named_with_the_user_who_may_not(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("schema: 1\n", encoding="utf-8")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(SettingsError, match=f"may not be read by the user that runs this, number {os.geteuid()}"):
            load_yaml(path)
    finally:
        os.seteuid(user)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such file"):
        load_yaml(tmp_path / "none.yaml")
