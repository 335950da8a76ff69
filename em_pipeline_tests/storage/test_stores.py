"""What `Store` promises, of a disk and of object stores; and how a tree is published by copies."""

import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from em_pipeline.domain.errors import Busy, InputRefused, NotFound, StorageFailed
from em_pipeline.storage.lock import dataset_lock
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import ObjectClient, client_of
from em_pipeline.storage.object_store import ObjectStore
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline.storage.store import LocalStore, Store, open_store
from em_pipeline_tests.buckets import POLICY
from em_pipeline_tests.portals.proxy import Break, breaking_proxy

OBJECT_STORES = [pytest.param("s3", marks=pytest.mark.integration), "gcs"]


@pytest.fixture(params=["local", *OBJECT_STORES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    blobs: ObjectBlobs = request.getfixturevalue(f"{request.param}_blobs")
    return ObjectStore(blobs.access, blobs.prefix)


@pytest.fixture(params=OBJECT_STORES)
def objects(request: pytest.FixtureRequest) -> ObjectStore:
    blobs: ObjectBlobs = request.getfixturevalue(f"{request.param}_blobs")
    return ObjectStore(blobs.access, blobs.prefix)


def stage(store: Store) -> dict[str, bytes]:
    """A staged volume with shards and a label image: its files by name."""
    files = {
        "0/zarr.json": b"{0}",
        "0/c/0/0/0": b"shard " * 100,
        "0/c/0/0/1": b"another" * 100,
        "labels/zarr.json": b"{labels}",
        "zarr.json": b"{root}",
    }
    for name, content in files.items():
        store.write(f"staging/a/v/volume.ome.zarr/{name}", content)
    return files


SOURCE, TARGET = "staging/a/v/volume.ome.zarr", "volumes/a/v.ome.zarr"


def published(store: Store) -> dict[str, bytes]:
    folder = store.blobs(TARGET)
    return {name: folder.read(name) for name in folder.names()}


def test_what_is_written_is_read_listed_and_deleted(store: Store) -> None:
    assert isinstance(store, Store)
    assert list(store.list("")) == []
    store.write("volumes/a/x.json", b"one")
    store.write("volumes/a/x.json", b"two")
    store.write("volumes/b/y.json", b"three")
    assert store.read("volumes/a/x.json") == b"two"
    assert store.exists("volumes/a")
    assert store.exists("volumes/a/x.json")
    assert not store.exists("volumes/c")
    assert not store.exists("volumes/a/x")
    assert list(store.list("")) == ["volumes/a/x.json", "volumes/b/y.json"]
    assert list(store.list("volumes/a/")) == ["volumes/a/x.json"]
    assert list(store.list("volumes/c")) == []
    assert store.blobs("volumes").read("a/x.json") == b"two"
    store.blobs("volumes/c/").write("z", b"four")
    assert store.read("volumes/c/z") == b"four"
    store.delete("volumes/a/x.json")
    store.delete("volumes/a/x.json")
    store.delete_tree("volumes/b")
    store.delete_tree("volumes/b")
    assert list(store.list("")) == ["volumes/c/z"]
    with pytest.raises(NotFound, match=re.escape("volumes/a/x.json")):
        store.read("volumes/a/x.json")


def test_only_a_folder_with_nothing_in_it_is_deleted_as_empty(store: Store) -> None:
    store.write("staging/a/v/x", b"one")
    store.delete_empty("staging/a")
    store.delete_empty("staging/a/v/x")
    store.delete_empty("staging/none")
    assert list(store.list("")) == ["staging/a/v/x"]
    store.delete_tree("staging/a/v")
    store.delete_empty("staging/a")
    assert not store.exists("staging/a")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/./b", "a\\b", "a\0b", ".em-tmp-x"]
)
def test_a_key_that_could_leave_the_store_is_refused(store: Store, key: str) -> None:
    for use in (store.read, store.exists, store.delete, store.delete_tree, store.delete_empty, store.blobs):
        with pytest.raises(InputRefused):
            use(key)
    with pytest.raises(InputRefused):
        store.write(key, b"")
    with pytest.raises(InputRefused), store.lock(key, "Try"):
        pytest.fail("locked")


def test_a_tree_is_published_once_and_publishing_again_is_harmless(store: Store) -> None:
    files = stage(store)
    store.publish_tree(SOURCE, TARGET)
    store.publish_tree(SOURCE, TARGET)
    assert published(store) == files
    assert not store.exists("staging/a/v/volume.ome.zarr")
    store.write(f"{SOURCE}/zarr.json", b"{ruut}")
    with pytest.raises(InputRefused, match="immutable"):
        store.publish_tree(SOURCE, TARGET)
    assert published(store) == files
    with pytest.raises(NotFound):
        store.publish_tree("staging/none", "volumes/none")
    with pytest.raises(NotFound):
        store.publish_tree(f"{SOURCE}/zarr.json", "volumes/b")
    store.delete_tree(TARGET)
    assert list(store.list("volumes")) == []


def test_a_dataset_is_one_processs(store: Store) -> None:
    with (
        dataset_lock(store, "files-a"),
        dataset_lock(store, "files-b"),
        pytest.raises(Busy, match="Work on files-a: process"),
        dataset_lock(store, "files-a"),
    ):
        pytest.fail("held twice")
    with dataset_lock(store, "files-a"):
        pass


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("copies", range(6))
def test_a_publication_that_was_interrupted_goes_on_and_no_reader_sees_half_a_volume(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    files = stage(objects)
    kind = type(client_of(objects.blobs("x").access))
    really, copied = kind.copy, []
    lock = threading.Lock()

    def copy(self: ObjectClient, source: str, target: str) -> None:
        with lock:
            if len(copied) == copies:
                raise Killed
            if target.endswith(f"{TARGET}/zarr.json"):
                assert len(copied) == len(files) - 1
            copied.append(target)
        really(self, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "copy", copy)
        if copies < len(files):
            with pytest.raises(Killed):
                objects.publish_tree(SOURCE, TARGET)
            assert not objects.exists(f"{TARGET}/zarr.json")
            assert len(list(objects.list(SOURCE))) == len(files)
    again: list[str] = []

    def copy_rest(self: ObjectClient, source: str, target: str) -> None:
        again.append(target)
        really(self, source, target)

    monkeypatch.setattr(kind, "copy", copy_rest)
    objects.publish_tree(SOURCE, TARGET)
    assert published(objects) == files
    assert list(objects.list("staging")) == []
    if copies < len(files):
        assert len(again) == len(files) - copies


def test_a_publication_interrupted_while_the_source_is_deleted_ends_it(objects: ObjectStore) -> None:
    files = stage(objects)
    source, target = objects.blobs(SOURCE), objects.blobs(TARGET)
    client = client_of(source.access)
    for name in files:
        client.copy(f"{source.prefix}/{name}", f"{target.prefix}/{name}")
    objects.publish_tree(SOURCE, TARGET)
    stage(objects)
    source.delete("zarr.json")
    source.delete("0/zarr.json")
    objects.publish_tree(SOURCE, TARGET)
    assert published(objects) == files
    assert list(objects.list("staging")) == []


def test_what_an_earlier_other_stage_left_half_copied_is_not_published(objects: ObjectStore) -> None:
    objects.write(f"{TARGET}/0/c/9/9/9", b"of another plan")
    objects.write(f"{TARGET}/0/c/0/0/0", b"x" * 600)
    files = stage(objects)
    objects.publish_tree(SOURCE, TARGET)
    assert published(objects) == files


def test_objects_sent_in_parts_are_published_and_not_copied_twice(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 gives the copy of such an object another tag."""
    sink = objects.blobs(SOURCE).create("0/c/0")
    sink.append(bytes(POLICY.part_bytes + 1))
    sink.commit()
    objects.write(f"{SOURCE}/zarr.json", b"{}")
    with breaking_proxy(address(objects)) as proxy:
        behind = moved(objects, proxy.url)
        method = "PUT" if "s3" in objects.url else "POST"
        last = f"{TARGET}/zarr.json" if method == "PUT" else "zarr.json/rewriteTo"
        proxy.fail(method, last, Break(status=403))
        with pytest.raises(StorageFailed, match="refused"):
            behind.publish_tree(SOURCE, TARGET)
        proxy.heal()
        proxy.requests.clear()
        if method == "PUT":
            # A copy made in the second in which its source was written cannot be told from an older object.
            monkeypatch.setattr(
                "em_pipeline.storage.object_store._is_copy", lambda w, f: f is not None and f.size == w.size
            )
        behind.publish_tree(SOURCE, TARGET)
        assert proxy.count(method, "v.ome.zarr") == 1
    assert objects.blobs(TARGET).size("0/c/0") == POLICY.part_bytes + 1


def address(objects: ObjectStore) -> str:
    endpoints = objects.blobs("x").access.endpoints
    return endpoints.s3 or endpoints.gs


def moved(objects: ObjectStore, url: str) -> ObjectStore:
    """The same store, asked through another address."""
    blobs = objects.blobs("x")
    name = "s3" if blobs.access.scheme == "s3" else "gs"
    endpoints = replace(blobs.access.endpoints, **{name: url})
    return ObjectStore(replace(blobs.access, endpoints=endpoints), blobs.prefix.removesuffix("/x"))


def test_a_volume_is_none_before_anything_else_of_it_is_deleted(objects: ObjectStore) -> None:
    stage(objects)
    objects.publish_tree(SOURCE, TARGET)
    with breaking_proxy(address(objects)) as proxy:
        moved(objects, proxy.url).delete_tree(TARGET)
        deletions = [line for line in proxy.requests if line.startswith("DELETE") or "?delete" in line]
        assert deletions[0].endswith("zarr.json")
        assert "labels" not in deletions[0]
        assert len(deletions) > 1


HOLDER = """
import pickle, sys, time
from em_pipeline.storage.lock import dataset_lock
with dataset_lock(pickle.loads(bytes.fromhex(sys.argv[1])), "files-a"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.integration
def test_a_killed_holder_frees_the_dataset(store: Store) -> None:
    import pickle

    command = [sys.executable, "-c", HOLDER, pickle.dumps(store).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match=f"process {holder.pid} on "), dataset_lock(store, "files-a"):
            pytest.fail("held twice")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with dataset_lock(store, "files-a"):
            pass


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket-1/some/prefix/", "s3://bucket-1/some/prefix"),
        ("s3://bucket-1", "s3://bucket-1"),
        ("GS://bucket-1/", "gs://bucket-1"),
    ],
)
def test_object_stores_open_by_url_without_being_asked(url: str, shown: str) -> None:
    store = open_store(url, ObjectEndpoints(s3="http://127.0.0.1:9", gs="http://127.0.0.1:9"))
    assert isinstance(store, ObjectStore)
    assert store.url == shown
    assert open_store(store.url).url == shown
    assert store.blobs("volumes/a").url == f"{shown}/volumes/a"


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "s3://b/x", "s3://bucket/a//b", "s3://bucket/../x", "gs://bucket/.em-tmp-x"]
)
def test_what_is_no_bucket_or_prefix_is_refused_with_what_to_do(url: str) -> None:
    with pytest.raises(InputRefused, match=r"Open the store .*s3://bucket/prefix"):
        open_store(url)
