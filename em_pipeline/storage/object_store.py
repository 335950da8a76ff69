"""The store in an object store: a bucket, or a prefix of one, at s3:// or gs://."""

from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager

from em_pipeline.domain.errors import InputRefused, NotFound, StorageFailed
from em_pipeline.storage.lease import lease
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.object_client import ObjectAccess, StoredObject, client_of
from em_pipeline.storage.object_urls import ObjectEndpoints, bucket_and_key
from em_pipeline.storage.store import check_key

VISIBLE = "zarr.json"
"""The file of a tree without which nobody takes the tree for a volume."""


class ObjectStore:
    """Implements `Store`. Writing a key is one request, and a reader sees the old bytes or the new ones."""

    def __init__(self, access: ObjectAccess, prefix: str = "") -> None:
        self._root = ObjectBlobs(access, prefix.strip("/"))

    @property
    def url(self) -> str:
        return self._root.url

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def read(self, key: str) -> bytes:
        return self._root.read(check_key(key))

    def write(self, key: str, data: bytes) -> None:
        self._root.write(check_key(key), data)

    def exists(self, key: str) -> bool:
        if self._root.size(check_key(key)) is not None:
            return True
        return next(self._root.names(key), None) is not None

    def list(self, prefix: str) -> Iterator[str]:
        folder = prefix.rstrip("/")
        return self._root.names(check_key(folder) if prefix else "")

    def delete(self, key: str) -> None:
        self._root.delete(check_key(key))

    def delete_tree(self, prefix: str) -> None:
        folder = check_key(prefix.rstrip("/"))
        self._root.delete(f"{folder}/{VISIBLE}")
        self._root.delete_all(folder)

    def blobs(self, prefix: str) -> ObjectBlobs:
        return self._root.below(check_key(prefix.rstrip("/")))

    def lock(self, key: str, tried: str) -> AbstractContextManager[None]:
        access, folder = self._root.access, self._root.prefix
        return lease(client_of(access), f"{folder}/{check_key(key)}".lstrip("/"), tried)

    def delete_empty(self, prefix: str) -> None:
        """Nothing to do but to check the key: folders are only there with what is in them."""
        check_key(prefix.rstrip("/"))

    def publish_tree(self, src_key: str, dst_key: str) -> None:
        """As `Store` says. Objects are copied by the store, several at once, `zarr.json` after all others.

        What an earlier run copied is not copied again, and what it had not deleted is deleted.
        """
        source, target = self.blobs(src_key), self.blobs(dst_key)
        tried = f"Publish {source.url} as {target.url}"
        wanted, there = source.entries(), target.entries()
        if VISIBLE in there:
            differing = [name for name in wanted if not _is_copy(wanted[name], there.get(name))]
            if differing:
                raise InputRefused(
                    tried,
                    f"{target.url} exists already with another {differing[0]}, "
                    "and what is published is immutable",
                    "Delete the published one first if it is wrong",
                )
        elif VISIBLE not in wanted:
            raise NotFound(tried, f"there is no {source.url}/{VISIBLE}", "Build it again first")
        else:
            target.delete_each(name for name in there if name not in wanted)
            missing = (name for name in wanted if not _is_copy(wanted[name], there.get(name)))
            self._copy(source, target, (name for name in missing if name != VISIBLE))
            _check_copies(wanted, target, tried)
            self._copy(source, target, [VISIBLE])
            if target.size(VISIBLE) != wanted[VISIBLE].size:
                raise _not_copied(target, VISIBLE, tried)
        self.delete_tree(src_key)

    def _copy(self, source: ObjectBlobs, target: ObjectBlobs, names: Iterable[str]) -> None:
        client = client_of(source.access)
        copies = [
            client.executor.submit(client.copy, f"{source.prefix}/{name}", f"{target.prefix}/{name}")
            for name in names
        ]
        try:
            for copy in copies:
                copy.result()
        finally:
            for copy in copies:
                copy.cancel()
            wait(copies)


def _check_copies(wanted: dict[str, StoredObject], target: ObjectBlobs, tried: str) -> None:
    """Raise `StorageFailed` unless a listing of `target` has all of `wanted` but `zarr.json`, and no more."""
    there = {name: entry.size for name, entry in target.entries().items()}
    for name in sorted((wanted.keys() | there.keys()) - {VISIBLE}):
        if name not in wanted or there.get(name) != wanted[name].size:
            raise _not_copied(target, name, tried)


def _not_copied(target: ObjectBlobs, name: str, tried: str) -> StorageFailed:
    return StorageFailed(
        tried,
        f"the store says that it copied everything, and {target.url}/{name} is not as it was",
        "Nothing was deleted: check the store, then run the same again",
    )


def _is_copy(wanted: StoredObject, found: StoredObject | None) -> bool:
    """Whether `found` can only be a copy of `wanted`: only copies are made there, one run at a time."""
    if found is None or found.size != wanted.size:
        return False
    return found.tag == wanted.tag or found.modified > wanted.modified


def open_object_store(url: str, endpoints: ObjectEndpoints) -> ObjectStore:
    """The store at s3://bucket/prefix or gs://bucket/prefix. Asks nothing of it yet.

    Raises `InputRefused` where `url` is none.
    """
    try:
        bucket, prefix = bucket_and_key(url)
        if prefix.rstrip("/"):
            check_key(prefix.rstrip("/"))
    except InputRefused as error:
        raise InputRefused(
            f"Open the store {url}",
            error.found,
            "Set EM_STORE_URL to s3://bucket/prefix or gs://bucket/prefix",
        ) from error
    return ObjectStore(ObjectAccess(url.partition("://")[0].lower(), bucket, endpoints), prefix)
