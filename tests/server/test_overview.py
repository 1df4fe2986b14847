"""How a run stands, from its folder alone, and the commands that show and change it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cxrbase_model.files import locked
from cxrbase_model.messages import Code, Reply
from cxrbase_model.settings import to_mapping
from server.cli import main
from server.consortium import read_consortium
from server.enrolment import enrol, provision
from server.exchange import Node
from server.home import Home
from server.live import Live, Requests
from server.overview import overview
from server.records import entry, record
from server.store import RunStore
from tests.server.hospitals import plan

STAGES = ["describe", "mae", "mae", "detect", "detect", "test"]
LINES: list[tuple[str, int, Code | None]] = [("riverside", 30, None), ("lindenhof", 10, None)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that has begun."""
    RunStore.create(tmp_path / "run", plan())
    return tmp_path / "run"


@pytest.fixture
def held(folder: Path) -> Iterator[None]:
    """Somebody runs the rounds."""
    with locked(folder / "run.lock") as alone:
        assert alone
        yield


def commit(folder: Path, number: int, seconds: float = 10.0, lines: list[tuple[str, int, Code | None]] = LINES) -> None:
    """Commit a round in which the hospitals have answered with examples or a code."""
    entries = []
    for site, examples, code in lines:
        reply = Reply(site, "pretrain", number, STAGES[number], "d", code, examples, update=b"u" * 100)
        status = {None: "admitted", Code.NO_REPLY: "silent", Code.NORM: "rejected"}.get(code, "refused")
        entries.append(
            entry(site, status, code, None if status == "silent" else reply) | {"bytes_sent": 1000 * (number > 0)}
        )
    done = record(number, STAGES[number], "pretrain", 1, 2, 1, 0.0, entries) | {"seconds": seconds}
    RunStore(folder, plan()).commit(done, None, ends_stage=False)


def hospitals(folder: Path, *enrolled: str) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in overview(folder, enrolled)["hospitals"]}


def test_a_run_that_nobody_runs_is_interrupted_whatever_it_said_last(folder: Path) -> None:
    for state in ("starting", "gathering", "running", "paused"):
        Live(folder).tell(state)
        assert overview(folder)["state"] == "interrupted"
        with locked(folder / "run.lock") as alone:
            assert alone
            assert overview(folder)["state"] == state
    for state in ("stopped", "failed"):
        Live(folder).tell(state, "a reason")
        assert (overview(folder)["state"], overview(folder)["detail"]) == (state, "a reason")


def test_looking_at_a_run_does_not_keep_anybody_from_running_it(folder: Path) -> None:
    overview(folder)
    with locked(folder / "run.lock") as alone:
        assert alone


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99, "state": "done"}'])
def test_a_damaged_status_is_as_none(folder: Path, text: str) -> None:
    commit(folder, 0)
    commit(folder, 1)
    (folder / "status.json").write_text(text)
    content = overview(folder, ["riverside"])
    assert (content["state"], content["rounds_done"]) == ("interrupted", 1)
    assert (content["hospitals"][1]["online"], content["hospitals"][1]["last_seen"]) == (False, None)


def test_a_record_that_was_torn_by_a_kill_is_not_counted(folder: Path) -> None:
    commit(folder, 0)
    commit(folder, 1)
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write(b'{"schema": 1, "round": 2, "stage"')
    assert overview(folder)["rounds_done"] == 1


def test_the_stage_and_round_that_come_next_are_named(folder: Path) -> None:
    shown = []
    for number in range(6):
        content = overview(folder)
        shown.append((content["rounds_done"], content["stage"], content["stage_round"], content["stage_rounds"]))
        commit(folder, number)
    assert shown == [
        (0, "mae", 1, 2),
        (0, "mae", 1, 2),
        (1, "mae", 2, 2),
        (2, "detect", 1, 2),
        (3, "detect", 2, 2),
        (4, "test", 1, 1),
    ]
    content = overview(folder)
    assert (content["state"], content["rounds_done"], content["rounds"], content["seconds_left"]) == ("done", 5, 5, 0)


def test_the_time_left_follows_from_the_rounds_of_each_stage(folder: Path) -> None:
    assert overview(folder)["seconds_left"] is None
    commit(folder, 0, seconds=500)
    assert overview(folder)["seconds_left"] is None, "hospitals that describe themselves say nothing of training"
    commit(folder, 1, seconds=10)
    assert overview(folder)["seconds_left"] == 40
    commit(folder, 2, seconds=20)
    assert overview(folder)["seconds_left"] == 45, "15 s for each of three rounds"
    commit(folder, 3, seconds=30)
    assert overview(folder)["seconds_left"] == 52.5, (
        "30 s for a second round of its stage, 22.5 s for one of an unknown stage"
    )


def test_what_each_hospital_has_done_is_counted(folder: Path) -> None:
    commit(folder, 0, lines=[("riverside", 30, None), ("lindenhof", 10, None), ("harbour", 0, Code.CACHE_MISSING)])
    commit(folder, 1, lines=[("riverside", 30, None), ("lindenhof", 0, Code.NO_REPLY), ("harbour", 0, Code.POLICY)])
    commit(folder, 2, lines=[("riverside", 20, None), ("lindenhof", 12, None), ("harbour", 5, Code.NORM)])
    lines = hospitals(folder)

    def counted(name: str) -> tuple[object, ...]:
        return tuple(
            lines[name][key]
            for key in ("rounds", "missed", "refusals", "examples", "last_code", "bytes_sent", "bytes_received")
        )

    assert list(lines) == ["harbour", "lindenhof", "riverside"]
    assert counted("riverside") == (2, 0, 0, 30, None, 2000, 300)
    assert counted("lindenhof") == (1, 1, 0, 12, None, 2000, 200)
    assert counted("harbour") == (0, 0, 3, 5, "NORM", 2000, 300)


def test_enrolled_hospitals_that_were_never_seen_are_listed(folder: Path, held: None) -> None:
    live = Live(folder)
    live.look([Node(1, "riverside", heard=100.0)], [])
    live.tell("gathering")
    lines = hospitals(folder, "riverside", "lindenhof")
    assert (lines["riverside"]["online"], lines["riverside"]["last_seen"]) == (True, 100.0)
    assert (lines["lindenhof"]["online"], lines["lindenhof"]["last_seen"], lines["lindenhof"]["rounds"]) == (
        False,
        None,
        0,
    )


def test_nobody_is_online_where_nobody_runs_the_rounds(folder: Path) -> None:
    Live(folder).look([Node(1, "riverside", heard=100.0)], [])
    assert hospitals(folder)["riverside"] | {"rounds": 0} == hospitals(folder)["riverside"]
    assert (hospitals(folder)["riverside"]["online"], hospitals(folder)["riverside"]["last_seen"]) == (False, 100.0)


def test_who_is_waited_for_and_which_attempt_it_is_are_told_while_it_runs(folder: Path) -> None:
    live = Live(folder)
    live.begin(1, "mae", 2)
    live.look([Node(1, "riverside"), Node(2, "lindenhof")], [2])
    assert (overview(folder)["attempt"], overview(folder)["waiting_for"]) == (None, [])
    with locked(folder / "run.lock"):
        assert (overview(folder)["attempt"], overview(folder)["waiting_for"]) == (2, ["lindenhof"])


@pytest.mark.parametrize(
    ("state", "running", "status"),
    [
        ("starting", True, 4), ("gathering", True, 4), ("running", True, 4), ("paused", True, 4),
        ("starting", False, 3), ("running", False, 3), ("paused", False, 3), ("stopped", False, 3), ("failed", False, 1),
    ],
)  # fmt: skip
def test_the_exit_status_says_how_a_run_stands(
    folder: Path, capsys: pytest.CaptureFixture[str], state: str, running: bool, status: int
) -> None:
    commit(folder, 0)
    Live(folder).tell(state)
    if running:
        with locked(folder / "run.lock"):
            assert main(["status", str(folder), "--json"]) == status
    else:
        assert main(["status", str(folder), "--json"]) == status
    assert json.loads(capsys.readouterr().out)["state"] == (
        state if running or state in ("stopped", "failed") else "interrupted"
    )


def test_a_run_that_is_done_exits_with_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        commit(folder, number)
    assert main(["status", str(folder)]) == 0
    assert "test: done, 5 of 5 rounds done\n" in capsys.readouterr().out


def test_the_json_of_a_status_is_its_overview(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(folder, 0)
    commit(folder, 1)
    main(["status", str(folder), "--json"])
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert json.loads(told) == overview(folder)


def test_the_table_names_every_hospital_and_what_it_answered_last(
    folder: Path, held: None, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(folder, 0)
    commit(
        folder, 1, lines=[("riverside", 30, None), ("lindenhof", 0, Code.NO_REPLY), ("[red]harbour", 0, Code.POLICY)]
    )
    live = Live(folder)
    live.begin(2, "mae", 1)
    live.look([Node(1, "riverside")], [1])
    assert main(["status", str(folder)]) == 4
    told = capsys.readouterr().out
    assert "test: running, 1 of 5 rounds done, about 40 s left" in told
    assert "stage mae, its round 2 of 2, attempt 1" in told
    assert "waits for riverside" in told
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert lines["riverside"][1] == "online"
    assert (lines["lindenhof"][1:3], lines["lindenhof"][-1]) == (["offline", "never"], "NO_REPLY")
    assert lines["[red]harbour"][-1] == "POLICY", "a name is text, not markup"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A consortium of two that is provisioned, of which one is enrolled."""
    file = tmp_path / "consortium.yaml"
    content = {"schema": 1, "name": "northlight", "address": "localhost", "hospitals": ["riverside", "lindenhof"]}
    file.write_text(yaml.safe_dump(content))
    provision(read_consortium(file))
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    public = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (tmp_path / "riverside.pub").write_bytes(public)
    enrol(read_consortium(file), "riverside", tmp_path / "riverside.pub")
    return file


def test_a_run_is_named_by_its_folder_or_by_the_consortiums_settings(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(folder), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["hospitals"] == []
    assert main(["status", str(settings), "--json"]) == 3
    assert [line["name"] for line in json.loads(capsys.readouterr().out)["hospitals"]] == ["riverside"]


def test_pause_resume_and_stop_are_asked_for_and_taken_back(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = Requests(folder)
    assert main(["pause", str(folder)]) == 0
    assert (requests.asked("pause"), requests.asked("stop")) == (True, False)
    assert main(["stop", str(settings)]) == 0
    assert (requests.asked("pause"), requests.asked("stop")) == (True, True)
    assert main(["resume", str(settings)]) == 0
    assert (requests.asked("pause"), requests.asked("stop")) == (False, False)
    assert main(["resume", str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_a_run_that_is_done_says_that_no_round_is_left_and_keeps_no_wish(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for number in range(len(STAGES)):
        commit(folder, number)
    assert main([command, str(folder)]) == 0
    assert "no round is left" in capsys.readouterr().out
    assert not any(Requests(folder).asked(what) for what in ("pause", "stop"))


def test_resume_does_not_say_that_a_run_goes_on_which_nobody_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(folder / "run.lock"):
        Live(folder).tell("running")
        assert main(["resume", str(folder)]) == 0
        assert "it goes on" in capsys.readouterr().out
    assert main(["resume", str(folder)]) == 0
    assert "it is interrupted, cxrbase-server start" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "pause", "resume", "stop"])
def test_what_is_wrong_is_one_line(
    tmp_path: Path, settings: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "wrong.yaml").write_text("schema: 1\nname: a\n")
    for named, reason in [
        (tmp_path, "holds no run yet"),
        (settings, "holds no run yet"),
        (tmp_path / "none.yaml", "none.yaml"),
        (tmp_path / "wrong.yaml", "address"),
    ]:
        assert main([command, str(named)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("cxrbase-server: ")
        assert told.err.count("\n") == 1
        assert reason in told.err
    assert not (tmp_path / "requests").exists()


def test_start_says_in_one_line_why_it_cannot_begin(
    tmp_path: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> str:
        assert main(["start", str(settings)]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return told

    assert "plan: is required to start" in refused()
    content = yaml.safe_load(settings.read_text())
    settings.write_text(yaml.safe_dump(content | {"plan": "plan.yaml"}))
    assert "plan.yaml" in refused()
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(to_mapping(plan())))
    home = Home(read_consortium(settings).home)
    with locked(home.lock):
        assert "is started already" in refused()
    settings.write_text(yaml.safe_dump(content | {"plan": "plan.yaml", "home": "elsewhere"}))
    assert "nothing is provisioned yet" in refused()
    assert not (tmp_path / "run").exists()


def test_start_does_not_go_on_with_the_run_of_another_plan(
    tmp_path: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunStore.create(tmp_path / "run", plan())
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(to_mapping(plan(quorum=1))))
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"plan": "plan.yaml"}))
    assert main(["start", str(settings)]) == 2
    assert "was started with plan" in capsys.readouterr().err
