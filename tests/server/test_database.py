"""The SuperLink's database is laid out for large pieces, once, and requests wait for it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.state.alembic.utils import run_migrations
from sqlalchemy import create_engine

from server import superlink
from server.database import lay_out, patient


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


def test_a_request_waits_for_a_busy_database_nearly_as_long_as_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", SQLITE_PRAGMAS)  # put back after the test
    superlink._wrap(sql_mixin, "SQLITE_PRAGMAS", patient)
    with closing(sqlite3.connect(tmp_path / "superlink.db")) as opened:
        sql_mixin._set_sqlite_pragmas(opened, None)
        assert opened.execute("PRAGMA busy_timeout").fetchone() == (25_000,)
        assert opened.execute("PRAGMA journal_mode").fetchone() == ("wal",)  # the others are Flower's
