"""FTP against a real server: whole files, resumed ones, broken ones; and mirrors of what HTTP cannot give."""

import hashlib
import os
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from em_pipeline.domain.errors import (
    ChecksumMismatch,
    EmError,
    InputRefused,
    NotFound,
    RecordInvalid,
    SourceUnavailable,
)
from em_pipeline.domain.files import Manifest, RemoteFile
from em_pipeline.storage.ftp_transfer import parse_ftp_url
from em_pipeline_tests.portals.faulty import Fault, FaultyServer, faulty_server
from em_pipeline_tests.portals.ftp import FtpPortal, ftp_portal
from em_pipeline_tests.storage.downloads import HASTY, PART, PATIENT, Watcher, hold, leftovers

DATA = random.Random(4).randbytes(10 * PART + 99)
NAME = "a b+c#1.tif"
ADDRESS = "a%20b%2Bc%231.tif"


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / NAME).write_bytes(DATA)
    return folder


@pytest.fixture
def ftp(served: Path) -> Iterator[FtpPortal]:
    with ftp_portal(served) as portal:
        yield portal


def remote(ftp: FtpPortal, **listed: object) -> RemoteFile:
    return RemoteFile.model_validate({"url": f"{ftp.url}/{ADDRESS}", "path": "a.tif", **listed})


def assert_holds(manifest: Manifest, folder: Path, data: bytes = DATA) -> None:
    (file,) = manifest.files
    assert (folder / "a.tif").read_bytes() == data
    assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert not leftovers(folder)


def test_a_file_is_held_whole_in_one_transfer(ftp: FtpPortal, tmp_path: Path) -> None:
    watcher = Watcher()
    manifest = hold([remote(ftp, size=len(DATA))], tmp_path / "raw", watcher=watcher)
    assert_holds(manifest, tmp_path / "raw")
    assert ftp.transfers() == ["0"]
    assert (ftp.sent, watcher.done) == (len(DATA), len(DATA))
    assert manifest.files[0].modified is not None
    assert any(command.startswith("EPSV") for command in ftp.commands)
    assert not any(command.startswith("PASV") for command in ftp.commands)
    assert hold([remote(ftp, size=len(DATA))], tmp_path / "raw") == manifest
    assert ftp.transfers() == ["0"]


@pytest.mark.parametrize("without", [{"EPSV"}, {"MDTM"}])
def test_servers_that_know_fewer_commands(served: Path, tmp_path: Path, without: set[str]) -> None:
    with ftp_portal(served, without=frozenset(without)) as ftp:
        assert_holds(hold([remote(ftp)], tmp_path / "raw"), tmp_path / "raw")
        assert ("PASV" in ftp.commands) == ("EPSV" in without)


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1])
def test_sizes_at_the_edges_of_parts(ftp: FtpPortal, served: Path, tmp_path: Path, size: int) -> None:
    (served / NAME).write_bytes(DATA[:size])
    assert_holds(hold([remote(ftp, size=size)], tmp_path / "raw"), tmp_path / "raw", DATA[:size])


def test_a_broken_transfer_goes_on_where_it_broke_off(ftp: FtpPortal, tmp_path: Path) -> None:
    ftp.cuts = [3 * PART + 4096, 2 * PART]
    watcher = Watcher()
    assert_holds(hold([remote(ftp)], tmp_path / "raw", watcher=watcher), tmp_path / "raw")
    assert ftp.sent == len(DATA)
    assert len(ftp.transfers()) == 3
    assert watcher.done == len(DATA)


def test_a_silent_transfer_is_given_up_and_goes_on(ftp: FtpPortal, tmp_path: Path) -> None:
    ftp.stalls = [PART]
    watcher = Watcher()
    assert_holds(hold([remote(ftp)], tmp_path / "raw", policy=HASTY, watcher=watcher), tmp_path / "raw")
    assert any("no bytes for 1.5 s" in note for note in watcher.notes)
    assert ftp.sent == len(DATA)


def test_a_transfer_that_drips_is_given_up_and_goes_on(ftp: FtpPortal, tmp_path: Path) -> None:
    ftp.drips = [0]
    watcher = Watcher()
    assert_holds(hold([remote(ftp)], tmp_path / "raw", policy=HASTY, watcher=watcher), tmp_path / "raw")
    assert any(re.search(r"only \d+ bytes in \d+\.\d s", note) for note in watcher.notes)
    assert len(ftp.transfers()) == 2


def test_finished_parts_survive_an_outage(served: Path, tmp_path: Path) -> None:
    with ftp_portal(served) as ftp:
        ftp.cuts = [4 * PART + 4096] + [0] * 20
        port_url = ftp.url
        with pytest.raises(SourceUnavailable, match="3 attempts failed"):
            hold([remote(ftp)], tmp_path / "raw")
        assert not (tmp_path / "raw/a.tif").exists()
        ftp.cuts, before = [], ftp.sent
        assert port_url == ftp.url
        assert_holds(hold([remote(ftp)], tmp_path / "raw"), tmp_path / "raw")
        assert ftp.transfers()[-1] == str(4 * PART)
        assert ftp.sent - before == len(DATA) - 4 * PART


def test_a_file_that_changed_between_runs_is_fetched_from_its_beginning(
    ftp: FtpPortal, served: Path, tmp_path: Path
) -> None:
    ftp.cuts = [4 * PART + 4096] + [0] * 20
    with pytest.raises(SourceUnavailable):
        hold([remote(ftp)], tmp_path / "raw")
    new = random.Random(5).randbytes(len(DATA))
    (served / NAME).write_bytes(new)
    os.utime(served / NAME, (1, 1))
    ftp.cuts = []
    assert_holds(hold([remote(ftp)], tmp_path / "raw"), tmp_path / "raw", new)


def test_what_ftp_refuses_is_a_clear_error(ftp: FtpPortal, tmp_path: Path) -> None:
    cases: list[tuple[RemoteFile, type[EmError]]] = [
        (RemoteFile(url=f"{ftp.url}/none", path="a"), NotFound),
        (RemoteFile(url=f"{ftp.url}/none", path="a", may_be_absent=True), NotFound),
        (remote(ftp, size=5), RecordInvalid),
        (remote(ftp, checksum="md5:" + "0" * 32), ChecksumMismatch),
        (RemoteFile(url="ftp://127.0.0.1:1/a", path="a"), SourceUnavailable),
    ]
    for file, error in cases:
        with pytest.raises(error):
            hold([file], tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [".download"]


def test_connections_keep_to_the_cap(ftp: FtpPortal, served: Path, tmp_path: Path) -> None:
    for n in range(12):
        (served / f"f{n}").write_bytes(DATA[: n * 1000])
    files = [RemoteFile(url=f"{ftp.url}/f{n}", path=f"f{n}") for n in range(12)]
    manifest = hold(files, tmp_path / "raw", policy=replace(PATIENT, connections=3))
    assert [file.size for file in manifest.files] == [n * 1000 for n in range(12)]
    assert 1 <= ftp.most <= 3


@pytest.mark.parametrize("url", ["ftp://h/", "ftp:///a", "ftp://u:p@h/a", "ftp://h/a%0d%0aDELE%20b"])
def test_what_is_no_address_for_anonymous_readers_is_refused(url: str) -> None:
    with pytest.raises(InputRefused):
        parse_ftp_url(url)


@pytest.fixture
def http() -> Iterator[FaultyServer]:
    with faulty_server({"/a.tif": DATA}) as running:
        yield running


def mirrored(http: FaultyServer, ftp: FtpPortal, **listed: object) -> RemoteFile:
    mirrors = (f"{ftp.url}/{ADDRESS}",)
    return RemoteFile.model_validate(
        {"url": f"{http.url}/a.tif", "path": "a.tif", "mirrors": mirrors, "etag": '"/a.tif-1"', **listed}
    )


def test_a_mirror_is_not_asked_while_the_first_address_works(
    http: FaultyServer, ftp: FtpPortal, tmp_path: Path
) -> None:
    http.faults = [Fault(status=503), Fault(reset_after=10)]
    manifest = hold([mirrored(http, ftp)], tmp_path / "raw")
    assert_holds(manifest, tmp_path / "raw")
    assert manifest.files[0].url == f"{http.url}/a.tif"
    assert ftp.commands == []


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(reset_after=0), Fault(body=b"<html>Sorry")])
def test_a_mirror_gives_what_the_first_address_cannot(
    http: FaultyServer, ftp: FtpPortal, tmp_path: Path, fault: Fault
) -> None:
    http.always = fault
    manifest = hold([mirrored(http, ftp, size=len(DATA))], tmp_path / "raw")
    assert_holds(manifest, tmp_path / "raw")
    assert manifest.files[0].url == f"{ftp.url}/{ADDRESS}"
    asked = len(ftp.commands)
    http.always = None
    assert hold([mirrored(http, ftp, size=len(DATA))], tmp_path / "raw") == manifest
    assert len(ftp.commands) == asked


def test_bytes_of_two_addresses_are_never_mixed(
    http: FaultyServer, ftp: FtpPortal, served: Path, tmp_path: Path
) -> None:
    other = random.Random(6).randbytes(len(DATA))
    (served / NAME).write_bytes(other)
    http.faults = [None] * 4 + [Fault(status=500)] * 200
    assert_holds(hold([mirrored(http, ftp)], tmp_path / "raw"), tmp_path / "raw", other)


def test_what_a_mirror_lacks_or_has_in_another_size_leaves_the_outage_and_the_parts(
    http: FaultyServer, ftp: FtpPortal, served: Path, tmp_path: Path
) -> None:
    for trouble in ("absent", "shorter"):
        if trouble == "absent":
            (served / NAME).unlink()
        else:
            (served / NAME).write_bytes(DATA[:-1])
        http.faults = [None] * 4 + [Fault(status=500)] * 200
        with pytest.raises(SourceUnavailable, match="HTTP 500"):
            hold([mirrored(http, ftp, size=len(DATA), may_be_absent=True)], tmp_path / trouble)
        http.faults, before = [], http.sent
        assert_holds(hold([mirrored(http, ftp, size=len(DATA))], tmp_path / trouble), tmp_path / trouble)
        # Parts in flight when the first address was given up are fetched again.
        assert http.sent - before <= len(DATA) - PART


def test_what_the_first_address_denies_is_not_sought_at_a_mirror(
    http: FaultyServer, ftp: FtpPortal, tmp_path: Path
) -> None:
    for status, error in ((404, NotFound), (403, InputRefused)):
        http.always = Fault(status=status)
        with pytest.raises(error):
            hold([mirrored(http, ftp)], tmp_path / "raw")
    assert ftp.commands == []


def test_a_run_goes_on_at_the_mirror_where_the_last_one_was(
    http: FaultyServer, ftp: FtpPortal, tmp_path: Path
) -> None:
    http.always = Fault(status=500)
    ftp.cuts = [4 * PART + 4096] + [0] * 20
    with pytest.raises(SourceUnavailable):
        hold([mirrored(http, ftp)], tmp_path / "raw")
    ftp.cuts, before = [], ftp.sent
    asked = len(http.requests)
    assert_holds(hold([mirrored(http, ftp)], tmp_path / "raw"), tmp_path / "raw")
    assert ftp.sent - before == len(DATA) - 4 * PART
    assert len(http.requests) == asked
