"""The main job as a user runs it, small: the console command, Flower's simulation runtime, a kill, a resume, the report.

The killed and resumed run must reach the very weights that the same hospitals reach in this process without Flower's runtime.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
from flwr.app import Message

from client.app import answer
from client.site import Site, read_site
from cxrbase_model.messages import reply_to_message, task_from_message
from cxrbase_model.plan import Plan, read_plan
from cxrbase_model.state import digest
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop
from server.store import RunStore
from sim.grid import LocalGrid, Node

COMMAND = str(Path(sys.executable).with_name("cxrbase-sim"))
PLAN = """
schema: 1
name: small
seed: 3
precision: float32
data: {image_size: 32, findings: [No Finding, Cardiomegaly, Pleural Effusion], validation: 0.2, test: 0.3}
model: {encoder: vit_micro, patch_size: 8, depth: 2, decoder_width: 32, decoder_depth: 1, decoder_heads: 2}
stages:
  - {kind: pretrain, name: mae, init: random, rounds: 3, local_epochs: 1, batch_size: 8}
  - {kind: finetune, name: detect, init: "stage:mae", rounds: 2, local_epochs: 1, batch_size: 8}
  - {kind: evaluate, name: test, split: test}
federation: {quorum: 2, deadline: 600, join_deadline: 600, keep_checkpoints: 2}
"""
CONFIG = """
plan: plan.yaml
hospitals: {kind: phantom, count: 2, pictures: 80, seed: 1}
data: hospitals
concurrent: 2
threads: 1
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and its plan."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "plan.yaml").write_text(PLAN, encoding="utf-8")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def resumed(study: Path) -> Path:
    """The run directory of a run that was killed after its second round and resumed to its end."""
    out = study / "run"
    _stopped(study, out, after_rounds=2, by=signal.SIGKILL)
    killed = RunStore(out, read_plan(out / "plan.yaml"))
    assert 2 <= killed.next_round - 1 < 6
    done = _run(study, out, "--resume")
    assert done.returncode == 0, done.stderr
    (out / "terminal.txt").write_text(done.stdout, encoding="utf-8")
    return out


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(study: Path, resumed: Path, tmp_path: Path) -> None:
    plan = read_plan(study / "plan.yaml")
    whole = _in_process(plan, [read_site(file) for file in sorted((study / "hospitals").glob("*/SITE.yaml"))], tmp_path)
    again = RunStore(resumed, plan)
    assert [_lasting(record) for record in again.records()] == [_lasting(record) for record in whole.records()]
    for stage in ("mae", "detect"):
        assert digest(again.stage_state(stage)) == digest(whole.stage_state(stage))


def test_the_run_directory_holds_what_was_promised(resumed: Path) -> None:
    run = json.loads((resumed / "run.json").read_text(encoding="utf-8"))
    assert run["plan_digest"] == read_plan(resumed / "plan.yaml").digest
    assert run["seed"] == 3
    assert {"python", "torch", "timm", "flwr", "pydicom"} <= run["versions"].keys()
    assert len(run["sessions"]) == 2
    assert len(list((resumed / "checkpoints").glob("round-*"))) == 2
    for name in ("mae", "detect"):
        assert (resumed / "stages" / f"{name}.safetensors").exists()
    for model in ("encoder", "classifier"):
        assert {file.suffix for file in (resumed / "export" / model).iterdir()} >= {".safetensors", ".json"}
    writers = {folder.name for folder in (resumed / "tensorboard").iterdir()}
    assert writers == {"_global", "lindenhof", "riverside"} or writers == {"_global", "riverside", "santa-clara"}


def test_the_report_holds_what_the_rounds_recorded(resumed: Path) -> None:
    report = json.loads((resumed / "report.json").read_text(encoding="utf-8"))
    assert [record["round"] for record in report["rounds"]] == list(range(7))
    assert len(report["hospitals"]) == 2
    evaluations = report["evaluations"]["detect"].values()
    assert len(evaluations) == 2
    cells = [finding["auroc"] for each in evaluations for finding in each["findings"].values()]
    assert any(cells)  # a hospital with too few patients of either kind tells None
    for cell in filter(None, cells):
        assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1
    page = (resumed / "report.html").read_text(encoding="utf-8")
    # six phantoms, each with its mask and its reconstruction, and again with what counts for three findings
    assert page.count("data:image/png") == 6 * 3 + 6 * 4
    assert "http" not in page.split("</style>")[-1].replace("http-equiv", "")  # self-contained: nothing is fetched


def test_the_terminal_names_the_files_and_each_users_next_command(resumed: Path) -> None:
    told = (resumed / "terminal.txt").read_text(encoding="utf-8")
    for expected in (str(resumed / "report.html"), "researcher: cxrbase-sim", "hospital:", "operator:", "detect"):
        assert expected in told


def test_nothing_of_a_patient_is_in_the_run_directory(study: Path, resumed: Path) -> None:
    """Neither what names a patient or a picture in the hospitals' files nor their paths are in anything that the server wrote."""
    ours = b"".join(file.read_bytes() for file in resumed.rglob("*") if file.is_file() and file.name != "terminal.txt")
    private = {str(study / "hospitals")}
    for file in (study / "hospitals").glob("*/dicom/**/*.dcm"):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        private |= {
            str(header.get(name, "")) for name in ("PatientID", "PatientName", "AccessionNumber", "SOPInstanceUID")
        }
    told = {text for text in private if len(text) > 5}  # an empty or a very short one would be found by chance
    assert len(told) > 100
    assert not [text for text in told if text.encode() in ours]


def test_a_finished_run_is_not_overwritten(study: Path, resumed: Path) -> None:
    before = (resumed / "rounds.jsonl").read_bytes()
    done = _run(study, resumed)
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert "--resume" in done.stderr
    assert (resumed / "rounds.jsonl").read_bytes() == before


def test_another_plan_cannot_go_on_with_a_run(study: Path, resumed: Path) -> None:
    done = _run(study, resumed, "--resume", "--seed", "4")
    assert done.returncode == 2
    assert "was started with plan" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("resumed")  # which makes the hospitals
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(study: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal, so the signal goes to the whole group, long before the run is over."""
    (tmp_path / "plan.yaml").write_text(PLAN.replace("rounds: 3", "rounds: 60"), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "hospitals").symlink_to(study / "hospitals")
    code, told = _stopped(tmp_path, tmp_path / "run", after_rounds=1, by=signal.SIGINT)
    assert code == 130
    assert "interrupted" in told
    assert "--resume" in told
    assert "Traceback" not in told
    assert _run(tmp_path, tmp_path / "run", "--resume").returncode == 0
    plan = read_plan(tmp_path / "plan.yaml")
    sites = [read_site(file) for file in sorted((study / "hospitals").glob("*/SITE.yaml"))]
    first, second = _in_process(plan, sites, tmp_path), RunStore(tmp_path / "run", plan)
    assert digest(first.stage_state("detect")) == digest(second.stage_state("detect"))


def _command(study: Path, out: Path, *more: str) -> list[str]:
    data = str(study / "hospitals")
    return [COMMAND, "run", str(study / "config.yaml"), "--data", data, "--out", str(out), *more]


def _environment() -> dict[str, str]:
    return os.environ | {"COLUMNS": "300"}  # long paths stay on one line


def _run(study: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(study, out, *more), capture_output=True, text=True, check=False, timeout=600, env=_environment()
    )


def _stopped(study: Path, out: Path, *, after_rounds: int, by: signal.Signals) -> tuple[int, str]:
    """Start a run in a session of its own, stop it after a round; its exit code and what it said on stderr."""
    log = study / f"{by.name}.txt"
    with (
        log.open("w", encoding="utf-8") as told,
        subprocess.Popen(
            _command(study, out), stdout=told, stderr=told, start_new_session=True, env=_environment()
        ) as process,
    ):
        limit = time.monotonic() + 400
        while _committed(out) <= after_rounds and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        if by == signal.SIGINT:
            os.killpg(process.pid, by)
        else:
            process.send_signal(by)
        code = process.wait(60)
    return code, log.read_text(encoding="utf-8")


def _committed(out: Path) -> int:
    file = out / "rounds.jsonl"
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0


def _in_process(plan: Plan, sites: list[Site], folder: Path) -> RunStore:
    """The same plan and hospitals without Flower's runtime."""

    def node(site: Site) -> Node:
        def reply(message: Message) -> Message:
            return reply_to_message(answer(task_from_message(message), site), message)

        return reply

    store = RunStore.create(folder / "whole", plan)
    grid = LocalGrid({number: node(site) for number, site in enumerate(sites, start=1)})
    RoundLoop(Exchange(grid), store, Live(store.folder), expected=len(sites)).run()
    return store


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs from run to run: times, and bytes of weights, which are sent whole once after a start."""
    passing = ("seconds", "finished", "hospitals", "bytes_sent")
    kept = {key: value for key, value in record.items() if key not in passing}
    kept["hospitals"] = [{key: value for key, value in e.items() if key not in passing} for e in record["hospitals"]]
    return kept
