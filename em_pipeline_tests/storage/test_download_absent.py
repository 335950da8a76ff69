"""Files that a portal may lack: absent is what it says is absent, and nothing else."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from em_pipeline.domain.errors import EmError, InputRefused, NotFound, SourceUnavailable
from em_pipeline.domain.files import RemoteFile
from em_pipeline_tests.portals.faulty import Fault, FaultyServer, faulty_server
from em_pipeline_tests.storage.downloads import PATIENT, hold

DATA = random.Random(3).randbytes(1000)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server({"/here": DATA}) as running:
        yield running


def listing(server: FaultyServer) -> list[RemoteFile]:
    return [
        RemoteFile(url=f"{server.url}/{name}", path=name, may_be_absent=True) for name in ("here", "gone")
    ]


def test_what_the_portal_lacks_is_named_and_never_becomes_a_file(
    server: FaultyServer, tmp_path: Path
) -> None:
    manifest = hold(listing(server), tmp_path)
    assert [file.path for file in manifest.files] == ["here"]
    assert manifest.absent == ("gone",)
    assert not (tmp_path / "gone").exists()


def test_a_file_that_must_be_there_is_not_found(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        hold([RemoteFile(url=f"{server.url}/gone", path="gone")], tmp_path)


NOT_ABSENCE: dict[str, tuple[Fault, type[EmError]]] = {
    "refused": (Fault(status=403), InputRefused),
    "unauthorized": (Fault(status=401), InputRefused),
    "removed": (Fault(status=410), NotFound),
    "broken": (Fault(status=500), SourceUnavailable),
    "busy": (Fault(status=503), SourceUnavailable),
    "silent": (Fault(stall_after=0), SourceUnavailable),
    "reset": (Fault(reset_after=0), SourceUnavailable),
    "web page": (Fault(body=b"<html>sorry</html>"), SourceUnavailable),
    "no bucket": (Fault(status=404, body=b"<Error><Code>NoSuchBucket</Code></Error>"), NotFound),
}


@pytest.mark.parametrize("name", NOT_ABSENCE)
def test_trouble_is_never_absence(server: FaultyServer, tmp_path: Path, name: str) -> None:
    server.always, error = NOT_ABSENCE[name]
    policy = replace(PATIENT, read_timeout_s=0.5) if name == "silent" else PATIENT
    with pytest.raises(error):
        hold(listing(server), tmp_path, policy=policy)


def test_absence_is_remembered_while_the_same_listing_is_fetched_and_no_longer(
    server: FaultyServer, tmp_path: Path
) -> None:
    hold(listing(server), tmp_path)
    asked = len(server.requests)
    assert hold(listing(server), tmp_path).absent == ("gone",)
    assert len(server.requests) == asked
    server.files["/gone"], server.etags["/gone"] = DATA, '"new"'
    server.files["/more"], server.etags["/more"] = DATA, '"more"'
    more = RemoteFile(url=f"{server.url}/more", path="more")
    manifest = hold([*listing(server), more], tmp_path)
    assert manifest.absent == ()
    assert (tmp_path / "gone").read_bytes() == DATA


def test_a_file_that_was_there_and_is_absent_now_is_not_left_lying(
    server: FaultyServer, tmp_path: Path
) -> None:
    hold(listing(server)[:1], tmp_path)
    del server.files["/here"]
    files = [file.model_copy(update={"etag": '"newer"'}) for file in listing(server)]
    manifest = hold(files, tmp_path)
    assert manifest.absent == ("here", "gone")
    assert not (tmp_path / "here").exists()


def test_the_manifest_tells_absent_from_not_listed(server: FaultyServer, tmp_path: Path) -> None:
    with_absent = hold(listing(server), tmp_path / "a")
    without = hold(listing(server)[:1], tmp_path / "b")
    assert with_absent.digest != without.digest
