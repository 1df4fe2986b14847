"""The SuperLink's database is laid out for large pieces, once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from flwr.supercore.state.alembic.utils import run_migrations
from sqlalchemy import create_engine

from server.database import lay_out


def page_size(database: Path) -> int:
    with closing(sqlite3.connect(database)) as opened:
        return int(opened.execute("PRAGMA page_size").fetchone()[0])


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # of Alembic, about Flower
def test_what_flower_makes_of_it_keeps_the_large_pages(tmp_path: Path) -> None:
    lay_out(tmp_path / "superlink.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'superlink.db'}")
    run_migrations(engine)
    engine.dispose()
    assert page_size(tmp_path / "superlink.db") == 65536


def test_a_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "superlink.db")) as made:
        made.execute("CREATE TABLE kept (number)")
    before = (tmp_path / "superlink.db").read_bytes()
    lay_out(tmp_path / "superlink.db")
    assert (tmp_path / "superlink.db").read_bytes() == before
