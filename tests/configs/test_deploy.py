"""What configs/deploy says fits the programs and the tree: an image that is built once a release has no other test here."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from client.cli import _parser as client_parser
from server.cli import _parser as server_parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "configs" / "deploy"
PARSERS = {"client": client_parser, "server": server_parser}


@pytest.mark.parametrize("side", sorted(PARSERS))
def test_unit_and_compose_file_start_their_side_with_a_command_that_it_has(side: str) -> None:
    unit = (DEPLOY / side / f"cxrbase-{side}.service").read_text(encoding="utf-8")
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    program, *arguments = shlex.split(line.partition("=")[2])
    service = yaml.safe_load((DEPLOY / side / "compose.yaml").read_text(encoding="utf-8"))["services"][side]
    assert program == f"/opt/cxrbase/bin/cxrbase-{side}"
    for given in (arguments, service["command"]):
        assert callable(PARSERS[side]().parse_args(given).run)


def test_the_build_context_is_what_the_image_is_made_of_and_no_more() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]}
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
