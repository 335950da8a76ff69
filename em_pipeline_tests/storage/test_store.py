"""The local store, beyond what `test_stores` asks of all: atomic writes, leftovers of killed writers."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.errors import InputRefused, StorageFailed
from em_pipeline.storage.direct_io import AppendedFile, DirectFile
from em_pipeline.storage.local_files import temporary_beside
from em_pipeline.storage.store import LocalStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@given(key=st.text(alphabet="ab./\\\0~ ", max_size=8))
@settings(max_examples=200, deadline=None)
def test_no_key_leaves_the_store(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    store = LocalStore(Path("/somewhere/store"))
    try:
        path = store.local_path(key)
    except InputRefused:
        return
    assert Path(os.path.normpath(path)).is_relative_to(store.root)
    assert Path(os.path.normpath(path)) != store.root


def test_a_failed_write_leaves_the_old_bytes_and_no_leftover(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFailed, match="No space left"):
            store.write("a/x", b"new")
    assert store.read("a/x") == b"old"
    assert [p.name for p in store.local_path("a").iterdir()] == ["x"]


def test_leftovers_of_dead_writers_are_hidden_then_removed(store: LocalStore) -> None:
    store.write("a/x", b"1")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = temporary_beside(store.local_path("a/x"))
    theirs = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    for each in (mine, theirs):
        each.write_bytes(b"half")
    assert list(store.list("")) == ["a/x"]
    LocalStore(store.root).write("a/y", b"2")
    assert mine.exists()
    assert not theirs.exists()


WRITER = """
import itertools, sys
from pathlib import Path
from em_pipeline.storage.direct_io import AppendedFile, DirectFile
from em_pipeline.storage.store import LocalStore
store = LocalStore(Path(sys.argv[1]))
for n in itertools.count():
    store.write("a/x", bytes([n % 256]) * 200_000)
"""


@pytest.mark.integration
def test_a_killed_writer_never_leaves_a_torn_file(store: LocalStore) -> None:
    for delay in (0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(store.root)])
        while not store.exists("a/x"):
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        data = store.read("a/x")
        assert len(data) == 200_000
        assert len(set(data)) == 1
        assert list(store.list("")) == ["a/x"]


def test_stores_open_by_path_and_file_url(tmp_path: Path) -> None:
    folder = tmp_path / "my store#1"
    for url in (
        str(folder),
        folder.as_uri(),
        f"file://localhost{folder.as_uri()[7:]}",
        f"file:{folder.as_uri()[7:]}",
    ):
        store = open_store(url)
        assert isinstance(store, LocalStore)
        assert store.root == folder
    assert open_store(store.url).url == store.url
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputRefused, match="not a folder"):
        open_store(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/x", "nearest known is s3://"),
        ("fil://x", "nearest known is file://"),
        ("xyz123://x", "not known"),
        ("file://host/x", "absolute path"),
        ("", "empty"),
    ],
)
def test_other_stores_are_refused_with_what_to_do(url: str, said: str) -> None:
    with pytest.raises(InputRefused, match=said) as caught:
        open_store(url)
    assert caught.value.to_do


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("s3:/bucket/em", "s3://bucket/em"),
        ("s3:bucket", "s3://bucket"),
        ("S3:bucket/em", "s3://bucket/em"),
        ("s3//bucket/em", "s3://bucket/em"),
        ("s3:", "s3://bucket/prefix"),
        ("gs:/bucket/em", "gs://bucket/em"),
        (" s3://bucket/em", "s3://bucket/em"),
        ("s3://bucket/em\n", "s3://bucket/em"),
        (" /folder ", "/folder"),
        ("file:em", str(Path("em").absolute())),
        ("file:", str(Path.cwd())),
    ],
)
def test_a_mistyped_url_is_no_folder(url: str, meant: str) -> None:
    with pytest.raises(InputRefused, match=f"EM_STORE_URL to {re.escape(meant)}, if that is meant"):
        open_store(url)


@pytest.mark.parametrize("path", ["s3", "gs/em", "s3x:y", "data:em", "files:em", "with space/em"])
def test_a_folder_may_be_called_almost_anything(path: str) -> None:
    store = open_store(path)
    assert isinstance(store, LocalStore)
    assert store.root == Path(path).absolute()


def test_what_the_disk_refuses_is_said(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "there")

    store.write("a/x", b"old")
    store.write("staging/tree/y", b"y")
    refused = pytest.raises(StorageFailed, match=r"there: Read-only file system.*mounted for writing")
    with monkeypatch.context() as patch:
        for name in ("open", "read_bytes", "unlink", "rename", "mkdir", "replace"):
            patch.setattr(Path, name, refuse)
        for attempt in (
            lambda: store.write("new/x", b""),
            lambda: store.read("a/x"),
            lambda: store.delete("a/x"),
            lambda: store.delete_tree("a"),
            lambda: store.publish_tree("staging/tree", "volumes/tree"),
        ):
            with refused:
                attempt()
    with monkeypatch.context() as patch, refused:
        patch.setattr(os, "fsync", refuse)
        store.write("a/x", b"new")
    assert store.read("a/x") == b"old"
    assert sorted(store.list("")) == ["a/x", "staging/tree/y"]


def test_a_file_where_a_folder_has_to_be(store: LocalStore) -> None:
    store.write("a", b"")
    with pytest.raises(StorageFailed, match="Make the folder"):
        store.write("a/b/c", b"")


@pytest.mark.parametrize(("kind", "flushes"), [(DirectFile, True), (AppendedFile, False)])
def test_volumes_are_written_as_the_kind_of_file_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[AppendedFile], flushes: bool
) -> None:
    direct: list[Path] = []
    real = DirectFile.__init__
    monkeypatch.setattr(DirectFile, "__init__", lambda self, path: direct.append(path) or real(self, path))
    blobs = open_store(str(tmp_path), grown=kind).blobs("staging/a").below("volume")
    sink = blobs.create("0/c/0/0/0")
    sink.append(bytes(10_000))
    sink.commit()
    assert bool(direct) == flushes
    blobs.write("zarr.json", b"{}")
    assert len(direct) <= 1
    assert blobs.read("0/c/0/0/0") == bytes(10_000)
