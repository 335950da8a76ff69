"""Raw files brought back from the store."""

import hashlib
from pathlib import Path

import pytest

from em_pipeline.domain.errors import ChecksumMismatch, NotFound, StorageFailed
from em_pipeline.domain.files import Manifest, RawFile
from em_pipeline.domain.progress import Silent
from em_pipeline.storage import bring as module
from em_pipeline.storage.bring import bring
from em_pipeline.storage.download import changed_since
from em_pipeline.storage.local_blobs import LocalBlobs

CONTENTS = {"a/big.tif": bytes(range(251)) * 200, "a/b/small": b"x", "empty": b"", "last": b"0123456789" * 9}


def files(contents: dict[str, bytes]) -> list[RawFile]:
    return [
        RawFile(url=f"https://h/{path}", path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in contents.items()
    ]


class Store(LocalBlobs):
    """One that remembers what was read, and fails from the `allowed`th read on."""

    reads: list[tuple[str, int, int]]
    allowed: int = 10**6

    def read_range(self, name: str, start: int, nbytes: int) -> bytes:
        if len(self.reads) >= self.allowed:
            raise StorageFailed("Read", "unplugged", "")
        self.reads.append((name, start, nbytes))
        return super().read_range(name, start, nbytes)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(module, "PIECE", 1000)
    place = Store(tmp_path / "store")
    place.reads = []
    for path, data in CONTENTS.items():
        place.write(path, data)
    return place


def test_they_come_whole_and_are_known_to_be(store: Store, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    bring(files(CONTENTS), store, spool, Silent())
    assert {path: (spool / path).read_bytes() for path in CONTENTS} == CONTENTS
    assert not list(spool.rglob("*.part"))
    manifest = Manifest(dataset_id="a-b", revision="r", files=tuple(files(CONTENTS)))
    assert changed_since(manifest, spool) == []
    assert all(nbytes <= 1000 for _, _, nbytes in store.reads)


@pytest.mark.parametrize("allowed", [0, 1, 7, 30, 51])
def test_a_run_that_fails_is_continued(store: Store, tmp_path: Path, allowed: int) -> None:
    spool = tmp_path / "spool"
    store.allowed = allowed
    with pytest.raises(StorageFailed, match="unplugged"):
        bring(files(CONTENTS), store, spool, Silent())
    kept = sum(path.stat().st_size for path in spool.rglob("*.part"))
    store.allowed, store.reads = 10**6, []
    missing = [file for file in files(CONTENTS) if not (spool / file.path).exists()]
    bring(missing, store, spool, Silent())
    assert {path: (spool / path).read_bytes() for path in CONTENTS} == CONTENTS
    assert sum(nbytes for _, _, nbytes in store.reads) == sum(file.size for file in missing) - kept


@pytest.mark.parametrize("damage", [b"", CONTENTS["a/big.tif"][:-1], CONTENTS["a/big.tif"][::-1]])
def test_other_bytes_are_refused_and_not_kept(store: Store, tmp_path: Path, damage: bytes) -> None:
    store.write("a/big.tif", damage)
    spool = tmp_path / "spool"
    with pytest.raises(ChecksumMismatch, match=r"a/big\.tif"):
        bring(files(CONTENTS), store, spool, Silent())
    assert not (spool / "a/big.tif").exists()
    store.write("a/big.tif", CONTENTS["a/big.tif"])
    bring(files(CONTENTS), store, spool, Silent())
    assert (spool / "a/big.tif").read_bytes() == CONTENTS["a/big.tif"]


def test_a_file_that_is_gone(store: Store, tmp_path: Path) -> None:
    store.delete("last")
    with pytest.raises(NotFound, match="last"):
        bring(files(CONTENTS), store, tmp_path / "spool", Silent())


def test_too_little_space_is_told_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StorageFailed, match="EM_SPOOL"):
        bring(files(CONTENTS), store, tmp_path / "spool", Silent())
    assert store.reads == []
