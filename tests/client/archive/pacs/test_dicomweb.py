"""DICOMweb, against a real Orthanc and, where it has to fail, through a proxy before it."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from client.archive.identity import Secret
from client.archive.pacs.dicomweb import DicomwebServer
from client.archive.pacs.link import Failure, Retry
from client.archive.sources import SourceLost
from cxrbase_model.settings import SettingsError
from tests.client.archive.pacs.conftest import Fetched, OpenPacs, Proxies, Web
from tests.client.archive.pacs.orthanc import Content, Pacs, TlsPacs


def test_chest_radiographs_are_fetched_and_everything_else_is_left(
    web: Web, open_pacs: OpenPacs, fetched: Fetched, content: Content
) -> None:
    source = open_pacs(web())
    assert fetched(source) == sorted(content.wanted())
    assert source.failures == {}


def test_pages_smaller_than_the_answer_lose_nothing(
    web: Web, open_pacs: OpenPacs, fetched: Fetched, content: Content, proxy: Proxies
) -> None:
    relay = proxy()
    source = open_pacs(web(url=relay.url, page=2, most_results=1000, until="2019-01-05"))
    assert fetched(source) == sorted(content.wanted(1, 2, 3))
    assert any("offset=2" in path for path in relay.paths)


def test_studies_are_chosen_by_date_modality_and_body_part(
    web: Web, open_pacs: OpenPacs, fetched: Fetched, content: Content
) -> None:
    spring = web(since="2019-03-01", until="2019-08-14")
    assert fetched(open_pacs(spring)) == sorted(content.wanted(5, 6))
    assert fetched(open_pacs(web(modalities=("DX",)))) == sorted(content.wanted(3, 4))
    thorax = web(body_parts=("thorax",))
    assert fetched(open_pacs(thorax)) == sorted(content.wanted(5, 6)), "6 does not say what it shows"
    assert len(fetched(open_pacs(web(body_parts=())))) == len(content.wanted()) + 2, "two hands"


def test_a_list_of_accession_numbers_chooses_the_studies(
    web: Web, open_pacs: OpenPacs, fetched: Fetched, content: Content, tmp_path: Path
) -> None:
    listed = "Accession Number,remark\n" + "".join(f"{content.accession(study)},x\n" for study in (4, 8, 21, 999))
    (tmp_path / "list.csv").write_text(listed)
    assert fetched(open_pacs(web(accessions=tmp_path / "list.csv"))) == sorted(content.wanted(4, 8))
    until_2019 = web(accessions=tmp_path / "list.csv", until="2019-12-31")
    assert fetched(open_pacs(until_2019)) == sorted(content.wanted(4))


def test_a_compressed_picture_comes_as_it_is_stored(web: Web, open_pacs: OpenPacs, content: Content) -> None:
    source = open_pacs(web(since="2019-08-15", until="2019-08-15"))
    (item,) = source.fetch(source.items())
    assert b"1.2.840.10008.1.2.5\0" in item.read(1 << 20)[:600], "RLE, in the file meta information"


def test_a_second_listing_asks_only_for_studies(web: Web, open_pacs: OpenPacs, proxy: Proxies) -> None:
    relay = proxy()
    first = {item.key for item in open_pacs(web(url=relay.url)).items()}
    assert any("/series" in path for path in relay.paths)
    relay.paths.clear()
    again = open_pacs(web(url=relay.url))
    assert {item.key for item in again.items()} == first
    assert not any("/series" in path for path in relay.paths)
    assert len(list(again.fetch(again.items()))) == len(first), "what is known only by key can be fetched all the same"


def test_an_interrupted_fetch_goes_on_where_it_stopped(
    web: Web, open_pacs: OpenPacs, content: Content, proxy: Proxies
) -> None:
    relay = proxy()
    source = open_pacs(web(url=relay.url, connections=1))
    items = list(source.items())
    partly = source.fetch(items)
    assert isinstance(partly, Generator)
    done = [next(partly) for _ in range(4)]
    partly.close()
    source.close()
    before = {path for path in relay.paths if "/instances/" in path}
    assert 4 <= len(before) < len(items)

    again = open_pacs(web(url=relay.url))
    relay.paths.clear()
    assert {content.uid_of(item) for item in again.fetch(again.items())} == content.wanted()
    after = {path for path in relay.paths if "/instances/" in path}
    assert len(after) == len(items) - len(before)
    assert not after & before
    assert {item.key for item in done} <= {item.key for item in items}


def test_a_killed_process_leaves_whole_files_that_are_not_fetched_again(
    web: Web, open_pacs: OpenPacs, content: Content, tmp_path: Path, proxy: Proxies
) -> None:
    relay = proxy()
    relay.faults = lambda path: "hang" if ".8.1.2" in path else None
    archive = web(url=relay.url, connections=1)
    program = (
        "import sys; from pathlib import Path; from client.archive.pacs.settings import DicomwebArchive\n"
        "from client.archive.identity import Secret; from client.archive.pacs.source import PacsSource\n"
        "url, password, private = sys.argv[1:]\n"
        f"archive = DicomwebArchive(url=url, user={archive.user!r}, password=Path(password), connections=1)\n"
        "source = PacsSource(archive, Path(private), Secret(bytes([7]) * 32), 1 << 24)\n"
        "for item in source.fetch(list(source.items())): print(item.key, flush=True)\n"
    )
    arguments = [relay.url, str(archive.password), str(tmp_path / "private")]
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fetched_keys = [process.stdout.readline().strip() for _ in range(3)]
        deadline = time.monotonic() + 20
        while not any(".8.1.2" in path for path in relay.paths) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    spooled = {path.name for path in (tmp_path / "private" / "spool").iterdir()}
    assert set(fetched_keys) <= spooled

    relay.faults = lambda path: None
    relay.paths.clear()
    source = open_pacs(archive)
    assert {content.uid_of(item) for item in source.fetch(source.items())} == content.wanted()
    assert sum("/instances/" in path for path in relay.paths) == len(content.wanted()) - len(
        {name for name in spooled if name.endswith(".dcm") and not name.startswith(".")}
    )


def test_what_is_done_leaves_the_spool_and_what_is_unknown_is_swept_out(
    web: Web, open_pacs: OpenPacs, tmp_path: Path
) -> None:
    spool = tmp_path / "private" / "spool"
    source = open_pacs(web(since="2020-01-01"))
    (spool / "left-by-an-earlier-run.dcm").write_bytes(b"x")
    items = list(source.fetch(source.items()))
    assert {path.name for path in spool.iterdir()} == {item.key for item in items}
    assert {path.stat().st_mode & 0o777 for path in (spool, *spool.iterdir())} == {0o700, 0o600}
    source.done(items)
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_passing_failures_are_tried_again(
    fault: str, web: Web, open_pacs: OpenPacs, fetched: Fetched, content: Content, proxy: Proxies
) -> None:
    relay = proxy()
    seen: Counter[str] = Counter()

    def twice(path: str) -> str | None:
        seen[path] += 1
        return fault if seen[path] <= 2 and path != relay.paths[0] else None  # the check at the start is not repeated

    relay.faults = twice
    source = open_pacs(web(url=relay.url, tries=3, since="2020-01-01"))
    assert fetched(source) == sorted(content.wanted(8, 9))
    assert source.failures == {}


def test_a_picture_that_cannot_be_had_is_counted_and_the_others_come(
    web: Web, open_pacs: OpenPacs, fetched: Fetched, content: Content, proxy: Proxies
) -> None:
    relay = proxy()
    relay.faults = lambda path: "503" if path.endswith("/instances/" + min(content.wanted(8))) else None
    source = open_pacs(web(url=relay.url, tries=2))
    assert fetched(source) == sorted(content.wanted() - {min(content.wanted(8))})
    assert source.failures == {Failure.BUSY: 1}
    relay.faults = lambda path: None
    items = list(source.items())
    assert len(items) == len(content.wanted()), "it is listed all the same, and had by the next fetch"
    assert content.uid_of(next(iter(source.fetch(items[-3:])))) in content.wanted()


def test_a_study_that_cannot_be_looked_into_keeps_what_was_known_of_it(
    web: Web, open_pacs: OpenPacs, content: Content, proxy: Proxies, tmp_path: Path
) -> None:
    relay = proxy()
    source = open_pacs(web(url=relay.url, tries=1))
    known = {item.key for item in source.items()}
    relay.faults = lambda path: "nonsense" if f"{content.root}.3/series" in path else None
    other_filter = open_pacs(web(url=relay.url, tries=1, modalities=("CR", "DX")))
    listed = {item.key for item in other_filter.items()}
    assert len(known - listed) == 3, "under another filter nothing is known of study 3"
    assert other_filter.failures == {Failure.NONSENSE: 1}


def test_a_search_that_fails_ends_the_listing(web: Web, open_pacs: OpenPacs, proxy: Proxies) -> None:
    relay = proxy()
    relay.faults = lambda path: "503" if "ModalitiesInStudy=DX" in path else None
    with pytest.raises(SourceLost, match="overloaded"):
        list(open_pacs(web(url=relay.url, tries=2)).items())


def test_a_pacs_that_goes_away_ends_the_fetch_and_keeps_what_came(
    web: Web, open_pacs: OpenPacs, proxy: Proxies, tmp_path: Path
) -> None:
    relay = proxy()
    source = open_pacs(web(url=relay.url, tries=2, connections=1))
    items = list(source.items())
    fetching = source.fetch(items)
    next(fetching)
    relay.close()
    with pytest.raises(SourceLost, match="no connection"):
        list(fetching)
    assert list((tmp_path / "private" / "spool").glob("*.dcm"))


def test_a_picture_above_the_limit_is_read_no_further(web: Web, open_pacs: OpenPacs) -> None:
    source = open_pacs(web(since="2020-01-02"), limit=1000)
    (item,) = source.fetch(source.items())
    assert item.path.stat().st_size == 1001, "one byte more, by which the ingest sees it"


def test_https_with_the_hospitals_own_authority_works_and_strangers_are_refused(
    web: Web, open_pacs: OpenPacs, fetched: Fetched, content: Content, proxy: Proxies, tls_pacs: TlsPacs
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_pacs.folder / "server.pem", tls_pacs.folder / "server.key")
    context.load_verify_locations(tls_pacs.folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    relay = proxy(context)
    ours = {"certificate": tls_pacs.tls.certificate, "key": tls_pacs.tls.key}
    archive = web(url=relay.url, ca=tls_pacs.tls.ca, since="2020-01-01", **ours)
    assert fetched(open_pacs(archive)) == sorted(content.wanted(8, 9))
    with pytest.raises(SourceLost, match=r"archive\.ca"):
        list(open_pacs(web(url=relay.url, **ours)).items())
    with pytest.raises(SourceLost, match=r"archive\."):
        list(open_pacs(web(url=relay.url, ca=tls_pacs.tls.ca)).items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://localhost:9/dicom-web"}, r"archive\.url: nothing answers"),
        ({"url": "https://localhost:{port}/dicom-web"}, r"archive\."),
        ({"url": "http://localhost:{port}/no-such-path"}, r"archive\.url: .* no DICOMweb at this path"),
        ({"url": "http://localhost:{port}/system"}, r"archive\.url"),
        ({"user": "intruder"}, "refuses us"),
    ],
)
def test_wrong_settings_are_told_within_seconds(
    settings: dict[str, Any], message: str, web: Web, open_pacs: OpenPacs, pacs: Pacs
) -> None:
    port = pacs.web.split(":")[2].split("/")[0]
    changed = {name: value.format(port=port) for name, value in settings.items()}
    started = time.monotonic()
    with pytest.raises(SourceLost, match=message):
        list(open_pacs(web(**changed)).items())
    assert time.monotonic() - started < 5


def test_a_token_is_read_anew_for_each_request(
    web: Web, open_pacs: OpenPacs, proxy: Proxies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first\n")
    once = Retry(1, 0.0, threading.Event())
    server = DicomwebServer(web(user="", password=None, token=tmp_path / "token"), 1000, once)
    session = server.link()._session
    sent = []
    monkeypatch.setattr(session, "send", lambda request, **_: sent.append(request.headers["Authorization"]))
    session.get("http://localhost/")
    (tmp_path / "token").write_text("second\n")
    session.get("http://localhost/")
    assert sent == ["Bearer first", "Bearer second"]


def test_a_missing_token_or_certificate_is_told(web: Web, open_pacs: OpenPacs, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"archive\.token"):
        open_pacs(web(user="", password=None, token=tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match=r"archive\.ca"):
        open_pacs(web(ca=tmp_path / "nowhere"))


def test_a_damaged_listing_is_made_anew(web: Web, open_pacs: OpenPacs, tmp_path: Path) -> None:
    count = len(list(open_pacs(web()).items()))
    (tmp_path / "private" / "pacs.sqlite").write_bytes(b"not a database" * 100)
    assert len(list(open_pacs(web()).items())) == count


def test_another_secret_gives_other_names(web: Web, open_pacs: OpenPacs, tmp_path: Path) -> None:
    from client.archive.pacs.source import PacsSource

    names = {item.key for item in open_pacs(web()).items()}
    shutil.rmtree(tmp_path / "private")
    with PacsSource(web(), tmp_path / "private", Secret(b"\x08" * 32), 1000) as source:
        assert not names & {item.key for item in source.items()}
