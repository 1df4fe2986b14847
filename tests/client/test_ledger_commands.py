"""What a privacy officer and an administrator read: the truth in plain words, and status 1 where it cannot be told."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from client.app import answer
from client.approval import Approvals
from client.archive.cache import CacheError
from client.budget import Standing, ledger_of, reserve, standing
from client.cli import main
from client.dataset import Cache
from client.forecast import cost, mechanisms
from client.ledger import HEAD, Entry, Ledger
from client.preflight import preflight
from client.release import leave
from client.site import Site, read_site
from client.statement import page, plain, size
from cxrbase_model.messages import Task
from cxrbase_model.plan import Plan, plan_to_text
from cxrbase_model.privacy import Mechanism
from tests.client.ledgering import TASK, promised, reply_to

ONE = Mechanism("patient", 1.0, 0.05, 20)


def site_file(site: Site, **policy: object) -> str:
    """The site's file, its policy changed."""
    path = site.private.parent / "SITE.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"policy": {"plans": "any"} | policy}))
    return str(path)


def text_of(html: str) -> str:
    """What a reader sees of a page, on one line."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[str] = []
            self.hidden = 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.hidden += tag in ("style", "script")

        def handle_endtag(self, tag: str) -> None:
            self.hidden -= tag in ("style", "script")

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                self.parts.append(data)

    reader = Reader()
    reader.feed(html)
    return " ".join(" ".join(reader.parts).split())


def trained(site: Site, rounds: int) -> None:
    for number in range(1, rounds + 1):
        task = replace(TASK, round=number)
        began = ledger_of(site).count()
        reserve(site, task, ONE)
        leave(reply_to(task), task, site, began)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell is broken."""
    monkeypatch.setenv("COLUMNS", "200")


def told(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 0
    return " ".join(capsys.readouterr().out.split())


def test_an_empty_ledger_says_so_and_is_not_made(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(["ledger", site_file(site)], capsys)
    assert "Epsilon 0.00 is spent for a patient, at delta 1e-05" in out
    assert "0 lines, complete and unaltered" in out
    assert not (site.private / "ledger").exists()


def test_the_table_tells_budget_lines_and_what_has_no_guarantee(
    site: Site, task_for: Callable[..., Task], capsys: pytest.CaptureFixture[str]
) -> None:
    file = site_file(site, epsilon=8)
    site = read_site(Path(file))
    answer(task_for("describe"), site)
    trained(site, 2)
    reserve(site, replace(TASK, round=3), ONE)
    out = told(["ledger", file], capsys)
    now = standing(site)
    assert f"Epsilon {math.ceil(now.spent * 100) / 100:.2f} is spent for a patient" in out
    assert "The budget is 8.00;" in out
    assert "1 evaluations and descriptions left" in out
    assert "1 reservations led to no release" in out
    assert "patient, noise 1, rate 0.05, steps 20" in out
    assert "6 lines, complete and unaltered" in out


def test_json_has_every_line_and_both_units(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    file = site_file(site, epsilon=8)
    trained(read_site(Path(file)), 3)
    assert main(["ledger", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["kind"] for line in found["entries"]] == ["reserve", "commit"] * 3
    assert found["epsilon"]["patient"] < found["epsilon"]["picture"]
    assert (found["budget"], found["delta"], found["unit"]) == (8.0, 1e-5, "patient")
    assert found["seal"].startswith("6:")


def test_a_release_without_a_guarantee_is_said_in_words_everywhere(
    site: Site, task_for: Callable[..., Task], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer(task_for("mae"), site)
    answer(task_for("detect"), site)
    file = site_file(site)
    assert "No epsilon can be stated for this hospital: 2 releases had no guarantee" in told(["ledger", file], capsys)
    assert main(["ledger", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] == {"patient": "infinite", "picture": "infinite"}
    assert main(["ledger", file, "--html", str(tmp_path / "page.html")]) == 0
    text = text_of((tmp_path / "page.html").read_text())
    assert "No limit can be stated. 2 releases had no privacy guarantee" in text
    assert "most" not in text.split("In short")[1].split("To whom")[0], "no bet is offered where there is no limit"
    with_budget = replace(site, policy=replace(site.policy, epsilon=8.0))
    entries = ledger_of(site).entries()
    text = text_of(page(with_budget, entries, ledger_of(site).seal()))
    assert "It cannot be kept any more; every training is refused" in text


def test_the_statement_says_what_when_to_whom_and_under_which_guarantee(
    site: Site, task_for: Callable[..., Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = site_file(site, epsilon=8, evaluations="allow")
    site = read_site(Path(file))
    answer(task_for("describe"), site)
    trained(site, 2)
    answer(task_for("test"), site)
    target = tmp_path / "statement.html"
    out = told(["ledger", file, "--html", str(target)], capsys)
    seal = ledger_of(site).seal()
    assert str(seal) in out
    assert target.stat().st_mode & 0o077 == 0
    html = target.read_text()
    text = text_of(html)
    for part in (
        "The record verifies. All 6 lines are there and unaltered",
        "Model update with a guarantee", "Evaluation of a model", "Description of the collection",
        "changes of the model's weights", "patient, noise 1, rate 0.05, steps 20", "of 8.00 is spent",
        "with delta 1 in 100,000", "no consortium was joined", "Not covered by epsilon: evaluations and descriptions", str(seal),
    ):  # fmt: skip
        assert part in text
    assert not re.findall(r"(?:src|href)=|url\(|<script", html), "it fetches nothing"


def test_names_that_a_server_chose_cannot_write_into_page_or_terminal(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\u202e[red]"
    Ledger(site.private).add(lambda _: Entry("description", run=evil, stage=evil, recipient=evil, bytes=5, note=evil))
    html = page(site, ledger_of(site).entries(), ledger_of(site).seal())
    assert "<script" not in html
    assert "\x1b" not in html
    assert main(["ledger", site_file(site)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert plain("a\nb\x07") == "a?b?"


def test_tampering_is_status_1_with_a_line_that_names_it(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    file = site_file(site)
    trained(site, 1)
    assert main(["ledger", file, "--verify"]) == 0
    assert "2 lines, complete and unaltered" in capsys.readouterr().out
    (site.private / HEAD).unlink()
    for extra in ([], ["--verify"], ["--json"], ["--html", str(site.private / "page.html")]):
        assert main(["ledger", file, *extra]) == 1
        told = capsys.readouterr()
        assert "ledger.head: is not there" in told.err
        assert "complete" not in told.out
    assert not (site.private / "page.html").exists()


def test_an_earlier_seal_is_found_again_or_missed(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    file = site_file(site)
    trained(site, 1)
    seal = ledger_of(site).seal()
    trained(site, 1)
    assert main(["ledger", file, "--verify", "--holds", str(seal)]) == 0
    assert main(["ledger", file, "--verify", "--holds", f"2:{'0' * 64}"]) == 1
    assert "the line of that seal is not in it" in capsys.readouterr().err
    assert main(["ledger", file, "--holds", "nonsense"]) == 2
    assert "--holds: expected a seal" in capsys.readouterr().err


def test_beginning_again_is_for_broken_ledgers_alone_and_costs_every_guarantee(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    file = site_file(site, epsilon=8)
    trained(read_site(Path(file)), 1)
    assert main(["ledger", file, "--begin-again", "why not"]) == 2
    assert "is for a ledger that cannot be verified" in capsys.readouterr().err
    (site.private / HEAD).unlink()
    assert main(["ledger", file, "--begin-again", "a disk failed"]) == 0
    capsys.readouterr()
    out = told(["ledger", file], capsys)
    assert "No epsilon can be stated for this hospital: 1 releases had no guarantee" in out
    assert "0.00 is left" in out
    text = text_of(page(site, ledger_of(site).entries(), ledger_of(site).seal()))
    assert "a disk failed" in text


def test_the_check_says_what_is_left_and_what_a_plan_would_cost(site: Site, plan: Plan) -> None:
    strict = replace(site, policy=replace(site.policy, epsilon=8.0))
    trained(strict, 1)
    private = promised(plan, noise_multiplier=4.0)
    items = {item.name: item for item in preflight(strict, private)}
    assert items["ledger"].text == "2 lines, complete and unaltered"
    assert re.fullmatch(
        r"epsilon [\d.]+ is spent for a patient, at delta 1e-05; [\d.]+ of 8.00 is left", items["budget"].text
    )
    assert items["privacy of the plan"].passed
    assert "policy.epsilon allows 8.00" in items["privacy of the plan"].text
    weak = promised(plan, noise_multiplier=0.3)
    assert not {item.name: item for item in preflight(strict, weak)}["privacy of the plan"].passed
    assert not {item.name: item for item in preflight(strict, plan)}["privacy of the plan"].passed
    loose = {item.name: item for item in preflight(replace(strict, policy=replace(strict.policy, delta=0.01)), plan)}
    assert loose["delta"].passed is False or len(Cache.open(site.cache_folder)) < 100
    (site.private / HEAD).unlink()
    items = {item.name: item for item in preflight(strict, private)}
    assert not items["ledger"].passed
    assert "budget" not in items


def test_a_delta_that_could_publish_a_patient_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = replace(site, policy=replace(site.policy, delta=0.01))
    assert {item.name: item for item in preflight(careless)}["delta"].passed, "30 patients"
    careful = replace(site, policy=replace(site.policy, delta=0.04))  # beyond what SITE.yaml lets in
    assert not {item.name: item for item in preflight(careful)}["delta"].passed


def test_a_forecast_is_the_sum_of_all_rounds_of_all_trainings(site: Site, plan: Plan) -> None:
    cache = Cache.open(site.cache_folder)
    private = promised(plan, noise_multiplier=2.0)
    pretraining, finetuning = mechanisms(private, site, cache)
    assert pretraining == Mechanism("patient", 2.0, 8 / 18, 3 * 5), "18 patients, two epochs in steps of 8"
    assert (finetuning.rate, finetuning.steps) == (0.5, 3 * 2), "16 of them have labels"
    assert mechanisms(plan, site, cache) == ()
    now = standing(site)
    assert cost(private, site, cache, now)[0] == now.after(pretraining, finetuning)
    assert isinstance(now, Standing)


def test_plans_that_wait_are_shown_with_their_cost(
    site: Site, plan: Plan, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = site_file(site, plans="ask", epsilon=8)
    private = promised(plan, noise_multiplier=2.0)
    Approvals(site.private).ask(private)
    Approvals(site.private).ask(plan)
    out = told(["plans", file], capsys)
    assert "all its rounds cost a patient epsilon" in out
    assert "no guarantee" in out
    out = told(["plans", file, "--approve", private.digest[:8]], capsys)
    assert out.index("all its rounds cost") < out.index("may run")
    (tmp_path / "plan.yaml").write_text(plan_to_text(private))
    (site.cache_folder / "cache.json").unlink()
    with pytest.raises(CacheError):
        Cache.open(site.cache_folder)
    assert "what it costs is known after the ingest" in told(["plans", file], capsys)


def test_sizes_are_told_as_people_read_them() -> None:
    assert [size(count) for count in (0, 5, 1000, 12_345, 3_200_000, 5_000_000_000)] == [
        "", "5 B", "1.0 kB", "12.3 kB", "3.2 MB", "5.0 GB",
    ]  # fmt: skip
