"""The ledger loses no line, notices every change, and says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from client.ledger import FOLDER, HEAD, Entry, Ledger, LedgerError, Seal
from cxrbase_model.files import write_private


def add(ledger: Ledger, count: int = 1) -> None:
    for _ in range(count):
        ledger.add(lambda entries: Entry("description", run=f"run {len(entries) + 1}", bytes=100))


def table(private: Path) -> sqlite3.Connection:
    return sqlite3.connect(private / FOLDER / "ledger.sqlite", isolation_level=None)


def change(private: Path, *statements: str) -> None:
    """Somebody with sqlite3 and time."""
    base = table(private)
    for statement in ("DROP TRIGGER no_update", "DROP TRIGGER no_delete", *statements):
        base.execute(statement)
    base.close()


def test_lines_are_kept_in_order_with_number_and_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.entries() == []
    assert not (tmp_path / FOLDER).exists(), "looking makes nothing"
    add(ledger, 3)
    found = Ledger(tmp_path).entries()
    assert [(entry.number, entry.run) for entry in found] == [(1, "run 1"), (2, "run 2"), (3, "run 3")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry.time) for entry in found)


def test_everything_survives_the_way_to_the_disk_and_back(tmp_path: Path) -> None:
    entry = Entry(
        "commit", "consortium (AB CD)", "run\n\x00é", "stage", 7, "d" * 64, "patient", 1.1, 0.0123, 9, "RDP", "patient", 1e-5,
        0.5, float("inf"), (3, 4), ("update",), 12345, 36, "note",
    )  # fmt: skip
    written = Ledger(tmp_path).add(lambda _: entry)
    assert Ledger(tmp_path).entries() == [written]
    assert written.reservations == (3, 4)
    base = table(tmp_path)
    (line,) = base.execute("SELECT line FROM entries").fetchone()
    base.close()
    assert "\n" not in line
    assert json.loads(line)["after"] == "infinite"


def test_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        add(Ledger(tmp_path / "private", tmp_path / "witness"), 2)
    finally:
        os.umask(umask)
    for path in (tmp_path / "private").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "witness").stat().st_mode & 0o077 == 0


def test_the_table_itself_refuses_changes(tmp_path: Path) -> None:
    add(Ledger(tmp_path), 2)
    base = table(tmp_path)
    for statement in ("UPDATE entries SET line = ''", "DELETE FROM entries WHERE number = 2"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            base.execute(statement)
    base.close()
    assert len(Ledger(tmp_path).entries()) == 2


def _drop_head(private: Path) -> None:
    (private / HEAD).unlink()


def _other_head(private: Path) -> None:
    other = Ledger(private.parent / "other")
    add(other, 5)
    shutil.copy(private.parent / "other" / HEAD, private / HEAD)


def _garbled_head(private: Path) -> None:
    (private / HEAD).write_bytes(b"{}")


def _edited_head(private: Path) -> None:
    head = json.loads((private / HEAD).read_text())
    write_private(private / HEAD, json.dumps(head | {"number": 4}).encode())


def _rewritten_chain(private: Path) -> None:
    """Change a line and compute every hash anew."""
    base = table(private)
    lines = [line for (line,) in base.execute("SELECT line FROM entries ORDER BY number")]
    lines[1] = lines[1].replace("run 2", "run X")
    base.execute("DROP TRIGGER no_update")
    last = ""
    for number, line in enumerate(lines, 1):
        last = hashlib.sha256(f"{last}\n{line}".encode()).hexdigest()
        base.execute("UPDATE entries SET line = ?, hash = ? WHERE number = ?", (line, last, number))
    base.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: change(p, "UPDATE entries SET line = replace(line, 'run 3', 'run X')"), "entry 3 was altered"),
        (lambda p: change(p, "UPDATE entries SET hash = upper(hash) WHERE number = 2"), "entry 2 was altered"),
        (lambda p: change(p, "DELETE FROM entries WHERE number = 2"), "entry 2 is missing"),
        (lambda p: change(p, "DELETE FROM entries WHERE number = 1"), "entry 1 is missing"),
        (lambda p: change(p, "DELETE FROM entries WHERE number > 3"), "entries 4 to 5 are missing.*old backup"),
        (lambda p: change(p, "DELETE FROM entries"), "entries 1 to 5 are missing"),
        (lambda p: change(p, "DROP TABLE entries"), "no such table|are missing"),
        (lambda p: shutil.rmtree(p / FOLDER), "is not there, and ledger.head knows of lines in it"),
        (_drop_head, "ledger.head: is not there"),
        (_other_head, "is not sealed with the secret of this hospital"),
        (_garbled_head, "ledger.head: is damaged"),
        (_edited_head, "is not sealed with the secret"),
        (_rewritten_chain, "entry 5 is not the one that ledger.head knows"),
        (lambda p: (p / FOLDER / "ledger.sqlite").write_bytes(b"no database" * 500), "ledger.sqlite: file is not a database"),
        (lambda p: (p / "secret.key").unlink(), "secret.key: is not there"),
    ],
)  # fmt: skip
def test_whatever_is_done_to_it_is_noticed_and_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    private = tmp_path / "private"
    add(Ledger(private), 5)
    damage(private)
    with pytest.raises(LedgerError, match=message):
        Ledger(private).entries()


def test_a_line_that_was_added_by_hand_is_noticed(tmp_path: Path) -> None:
    add(Ledger(tmp_path))
    base = table(tmp_path)
    line, last = base.execute("SELECT line, hash FROM entries").fetchone()
    hash_ = hashlib.sha256(f"{last}\n{line}".encode()).hexdigest()
    base.execute("INSERT INTO entries VALUES (2, ?, ?)", (line, hash_))
    base.close()
    with pytest.raises(LedgerError, match="knows of 1 entries, the ledger holds 2"):
        Ledger(tmp_path).entries()


def test_an_earlier_line_that_is_changed_while_a_process_runs_stops_the_next_line_and_the_next_look(
    tmp_path: Path,
) -> None:
    """A process reads a line's text once, and hashes all of them each time."""
    ledger = Ledger(tmp_path)
    add(ledger, 3)
    assert len(ledger.entries()) == 3
    change(tmp_path, "UPDATE entries SET line = replace(line, 'run 1', 'run X') WHERE number = 1")
    for look in (lambda: add(ledger), ledger.entries, ledger.seal):
        with pytest.raises(LedgerError, match="entry 1 was altered"):
            look()


def test_a_backup_of_the_table_that_is_put_back_is_noticed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(ledger, 3)
    shutil.copytree(tmp_path / FOLDER, tmp_path / "backup")
    add(ledger, 3)
    shutil.rmtree(tmp_path / FOLDER)
    shutil.copytree(tmp_path / "backup", tmp_path / FOLDER)
    with pytest.raises(LedgerError, match="entries 4 to 6 are missing"):
        add(ledger)


def test_a_backup_of_the_whole_folder_is_noticed_by_witness_and_by_seal(tmp_path: Path) -> None:
    private, witness = tmp_path / "private", tmp_path / "elsewhere" / "witness"
    witness.parent.mkdir()
    ledger = Ledger(private, witness)
    add(ledger, 3)
    shutil.copytree(private, tmp_path / "backup")
    early, late = ledger.seal(), None
    add(ledger, 3)
    late = ledger.seal()
    shutil.rmtree(private)
    shutil.copytree(tmp_path / "backup", private)
    with pytest.raises(LedgerError, match="entries 4 to 6 are missing, witness knows of them"):
        ledger.entries()
    alone = Ledger(private)
    assert len(alone.entries()) == 3, "without a witness nothing here can tell"
    assert alone.holds(early)
    assert not alone.holds(late)
    assert not alone.holds(Seal(2, early.hash))


def test_a_witness_that_cannot_be_written_stops_everything(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, tmp_path / "not mounted" / "witness")
    with pytest.raises(LedgerError, match="witness: cannot be written"):
        add(ledger)
    assert Ledger(tmp_path).entries() == []


def test_a_witness_can_come_later(tmp_path: Path) -> None:
    add(Ledger(tmp_path), 2)
    add(Ledger(tmp_path, tmp_path / "witness"), 2)
    assert len(Ledger(tmp_path, tmp_path / "witness").entries()) == 4


class Killed(BaseException):
    """The machine dies here."""


def add_and_die(ledger: Ledger, patch: pytest.MonkeyPatch, writes: int, *, after: bool) -> list[str]:
    """Add a line on a machine that dies before or after its so many-th write of a head or a row; the writes that were done."""
    from client import ledger as module

    left, done = iter(range(10)), []

    def dying(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            last = next(left) == writes
            if last and not after:
                raise Killed
            real(*arguments)
            done.append(real.__name__)
            if last:
                raise Killed

        return call

    with patch.context() as context:
        for name in ("write_head", "_insert"):
            context.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(Killed):
            add(ledger)
    return done


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_a_line_is_there_whole_or_not_at_all_wherever_the_machine_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, after: bool
) -> None:
    """Between witness, head, table and the end of the transaction: never an error afterwards, never a lost line that was begun."""
    ledger = Ledger(tmp_path, tmp_path / "witness")
    add(ledger, 3)
    kept = 4 if add_and_die(ledger, monkeypatch, writes, after=after) else 3
    assert len(Ledger(tmp_path, tmp_path / "witness").entries()) == kept
    add(ledger)
    assert [entry.number for entry in ledger.entries()] == list(range(1, kept + 2))
    assert len(Ledger(tmp_path).entries()) == kept + 1


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("again", [0, 1, 2, 3])
@pytest.mark.parametrize("witness", [True, False])
def test_so_it_is_where_the_machine_dies_again_while_it_puts_back_the_line_of_its_first_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, again: int, witness: bool
) -> None:
    ledger = Ledger(tmp_path, tmp_path / "witness" if witness else None)
    add(ledger, 3)
    if not witness:  # which is one write less each time
        first, again = min(first, 1), min(again, 2)
    add_and_die(ledger, monkeypatch, first, after=True)
    add_and_die(ledger, monkeypatch, again, after=True)
    kept = len(ledger.entries())
    assert kept in (4, 5)
    add(ledger)
    assert [entry.number for entry in ledger.entries()] == list(range(1, kept + 2))


def test_what_was_refused_leaves_no_line(tmp_path: Path) -> None:
    def refuse(entries: list[Entry]) -> Entry:
        raise PermissionError

    add(Ledger(tmp_path))
    with pytest.raises(PermissionError):
        Ledger(tmp_path).add(refuse)
    assert len(Ledger(tmp_path).entries()) == 1


def test_a_full_disk_is_an_error_and_the_line_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client import ledger as module

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    ledger = Ledger(tmp_path)
    add(ledger)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_insert", full)
        with pytest.raises(LedgerError, match="disk is full"):
            add(ledger)
    assert len(ledger.entries()) == 2


def test_another_releases_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ledger_entry.SCHEMA", 2)
    add(Ledger(tmp_path))
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="entry 1 is of another release's format"):
        Ledger(tmp_path).entries()


def test_a_lost_ledger_is_kept_and_said_for_ever(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, tmp_path / "witness")
    add(ledger, 3)
    change(tmp_path, "DELETE FROM entries WHERE number = 2")
    aside = ledger.begin_again("a disk failed")
    assert sorted(path.name for path in aside.iterdir()) == [FOLDER, HEAD, "witness"]
    (line,) = ledger.entries()
    assert (line.kind, line.note) == ("lost", f"a disk failed ({aside.name})")
    add(ledger)
    assert len(ledger.entries()) == 2


def test_the_documented_commands_verify_it_by_hand(tmp_path: Path) -> None:
    """The shell lines of docs/ledger.md, run as they stand there."""
    if shutil.which("sqlite3") is None or shutil.which("sha256sum") is None:
        pytest.skip("sqlite3 or sha256sum is not installed")
    text = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(# verify by hand.*?)```", text, re.DOTALL)

    def by_hand() -> str:
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    ledger = Ledger(tmp_path)
    ledger.add(lambda _: Entry("commit", run="tab\there \\ 'quote' é", note="%s"))
    add(ledger, 4)
    seal = ledger.seal()
    assert by_hand().split() == ["5", "lines,", "last", seal.hash]
    change(tmp_path, "UPDATE entries SET line = replace(line, 'run 3', 'run X')")
    assert "line 3 was altered" in by_hand()
