"""What a hospital types and reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.cli import main

PLAN = """
schema: 1
name: tiny
data: {findings: [No Finding, Cardiomegaly], image_size: 32, validation: 0.1, test: 0.2}
model: {patch_size: 8}
stages: [{kind: pretrain, rounds: 1}]
"""


@pytest.fixture
def site(tmp_path: Path) -> str:
    from tests.client.archive.conftest import radiograph

    (tmp_path / "dicom").mkdir()
    for number in range(4):
        radiograph(number).save_as(tmp_path / "dicom" / f"{number}.dcm", enforce_file_format=True)
    radiograph(9, Modality="CT").save_as(tmp_path / "dicom" / "ct.dcm", enforce_file_format=True)
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "labels.csv").write_text("AccessionNumber,Herz\nACC00000001,1\nACC00000002,0\n")
    (tmp_path / "SITE.yaml").write_text(
        "schema: 1\nsite: riverside\narchive: {kind: dicom, path: dicom}\ncompute: {workers: 1}\n"
        "labels: {file: labels.csv, key: AccessionNumber, names: {Herz: Cardiomegaly}}\n"
    )
    return str(tmp_path / "SITE.yaml")


def test_ingest_verify_audit_and_forget(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(Path(site).with_name("plan.yaml"))
    assert main(["ingest", site, "--plan", plan]) == 0
    told = capsys.readouterr().out
    assert "riverside: 5 files read, 0 unchanged" in told
    assert "pictures of 2 patients" in told
    assert "MODALITY" in told
    assert "Cardiomegaly" in told
    assert main(["ingest", site, "--plan", plan]) == 0
    assert "0 files read, 5 unchanged" in capsys.readouterr().out
    assert main(["verify", site]) == 0
    assert "every checksum is right" in capsys.readouterr().out
    assert main(["audit", site]) == 0
    assert "nothing in the cache names anyone" in capsys.readouterr().out
    assert main(["forget", site, "--patient", "PAT-000000"]) == 0
    assert "removed 2 pictures" in capsys.readouterr().out


def test_nothing_that_is_printed_names_anyone(site: str, capfd: pytest.CaptureFixture[str]) -> None:
    main(["ingest", site, "--plan", str(Path(site).with_name("plan.yaml"))])
    main(["audit", site])
    told = "".join(capfd.readouterr())
    for text in ("Verylongname", "PAT-0000", "1.2.826", "ACC0000", "19770321"):
        assert text not in told


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["ingest", "{site}", "--plan", "nowhere.yaml"], 2, "nowhere.yaml: there is no such file"),
        (["ingest", "nowhere.yaml", "--plan", "{plan}"], 2, "nowhere.yaml: there is no such file"),
        (["verify", "{site}"], 1, "cache.json is not there; run cxrbase-client ingest first"),
        (["forget", "{site}", "--patient", "x"], 1, "nothing was ingested here"),
    ],
)
def test_what_goes_wrong_is_one_line(
    site: str, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, line: str
) -> None:
    plan = str(Path(site).with_name("plan.yaml"))
    assert main([argument.format(site=site, plan=plan) for argument in arguments]) == status
    told = capsys.readouterr().err
    assert told.startswith("cxrbase-client: ")
    assert line in told
    assert told.count("\n") == 1


def test_verify_fails_on_a_changed_cache(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ingest", site, "--plan", str(Path(site).with_name("plan.yaml"))])
    (shard,) = Path(site).parent.glob("private/cache/*.u8")
    shard.write_bytes(bytes(shard.stat().st_size))
    assert main(["verify", site]) == 1
    assert "was altered after the ingest" in capsys.readouterr().err


def test_the_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for command in ("ingest", "verify", "audit", "forget"):
        assert command in told
