from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from em_pipeline.domain.progress import Silent
from em_pipeline.volumes.codec import ChunkCodec
from em_pipeline.volumes.shard import decode_index, encode_index, index_nbytes
from em_pipeline.volumes.verify import FaultKind, VerifyResult, verify_decoded, verify_stored
from em_pipeline_tests.volumes.written import places, random_voxels, stored_in, write

ARRAY = random_voxels((13, 20, 33), "uint16")
Verify = Callable[..., VerifyResult]
BOTH = pytest.mark.parametrize("verify", [verify_stored, verify_decoded])
SHARD = "0/c/0/1/2"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    write(ARRAY, folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return copytree(pristine, tmp_path / "copy")


def run(verify: Verify, folder: Path, **options: Any) -> VerifyResult:
    return verify(*places(folder), threads=2, progress=Silent(), **options)


def flip(path: Path, place: int) -> None:
    altered = bytearray(path.read_bytes())
    altered[place] ^= 0x40
    path.write_bytes(altered)


@BOTH
def test_a_sound_volume_has_no_faults(verify: Verify, pristine: Path) -> None:
    written = stored_in(pristine)
    assert written is not None
    result = run(verify, pristine, ledger_sha256=written.ledger.sha256)
    assert result.passed
    assert result.chunks == len(written.ledger.rows)
    assert result.bytes > written.ledger.rows["nbytes"].sum()


def test_a_flipped_byte_is_found_wherever_it_is(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted((folder / "volume.ome.zarr").rglob("c/*/*/*")):
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *(int(p) for p in rng.integers(0, len(whole), 4))}:
            flip(path, place)
            result = run(verify_stored, folder)
            (fault,) = result.faults
            assert fault.shard == path.relative_to(folder / "volume.ome.zarr").as_posix()
            in_index = place >= len(whole) - index_nbytes(_chunks(path, folder))
            assert fault.kind is (FaultKind.INDEX if in_index else FaultKind.CHUNK)
            assert (fault.chunk is None) == in_index
            path.write_bytes(whole)


def _chunks(path: Path, folder: Path) -> Any:
    written = stored_in(folder)
    assert written is not None
    return written.levels[int(path.relative_to(folder / "volume.ome.zarr").parts[0])].chunks_per_shard


@BOTH
def test_a_missing_shard(verify: Verify, folder: Path) -> None:
    shard = folder / "volume.ome.zarr" / SHARD
    whole, size = run(verify, folder), shard.stat().st_size
    shard.unlink()
    result = run(verify, folder)
    faults = result.faults
    assert result.bytes == whole.bytes - size
    assert {(fault.kind, fault.level, fault.shard) for fault in faults} == {
        (FaultKind.MISSING_SHARD, 0, SHARD)
    }
    assert all(fault.chunk is not None and str(tuple(fault.chunk)) in str(fault) for fault in faults)
    assert len({fault.chunk for fault in faults}) == len(faults)


@BOTH
@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_shard(verify: Verify, folder: Path, kept: int) -> None:
    path = folder / "volume.ome.zarr" / SHARD
    whole, size = run(verify, folder), path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    result = run(verify, folder)
    faults = result.faults
    assert result.bytes == whole.bytes - size + path.stat().st_size
    assert faults[0].kind is FaultKind.TRUNCATED_SHARD
    assert {fault.shard for fault in faults} == {SHARD}


@BOTH
def test_bytes_after_the_end(verify: Verify, folder: Path) -> None:
    with (folder / "volume.ome.zarr" / SHARD).open("ab") as file:
        file.write(b"more")
    (fault,) = run(verify, folder).faults
    assert (fault.kind, fault.shard) == (FaultKind.TRAILING_BYTES, SHARD)


@BOTH
def test_an_index_with_a_right_checksum_that_swaps_two_chunks(verify: Verify, folder: Path) -> None:
    path = folder / "volume.ome.zarr/0/c/0/1/1"
    whole = path.read_bytes()
    length = index_nbytes(_chunks(path, folder))
    index = decode_index(whole[-length:], "x").copy()
    index[[0, 1]] = index[[1, 0]]
    path.write_bytes(whole[:-length] + encode_index(index))
    (fault,) = run(verify, folder).faults
    assert fault.kind is FaultKind.INDEX


@BOTH
@pytest.mark.parametrize("name", ["0/c/7/0/0", "notes.txt", "0/c/0/0/.0.partial", "9/zarr.json"])
def test_a_file_that_does_not_belong(verify: Verify, folder: Path, name: str) -> None:
    path = folder / "volume.ome.zarr" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("?")
    (fault,) = run(verify, folder).faults
    assert (fault.kind, fault.shard) == (FaultKind.UNEXPECTED_FILE, name)


@BOTH
@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", "1/zarr.json"])
def test_an_altered_document(verify: Verify, folder: Path, name: str) -> None:
    path = folder / "volume.ome.zarr" / name
    path.write_text(
        path.read_text()
        .replace("nanometer", "micrometer")
        .replace('"attributes": {}', '"attributes": {"a": 1}')
    )
    (fault,) = run(verify, folder).faults
    assert fault.kind is FaultKind.DOCUMENT
    assert name in fault.message


@BOTH
@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_a_missing_or_unreadable_document(verify: Verify, folder: Path, name: str) -> None:
    path = folder / "volume.ome.zarr" / name
    for damage in (lambda: path.write_text("{"), path.unlink):
        damage()
        assert FaultKind.DOCUMENT in {fault.kind for fault in run(verify, folder).faults}


@BOTH
def test_a_ledger_that_is_not_the_expected_one(verify: Verify, folder: Path) -> None:
    written = stored_in(folder)
    assert written is not None
    ledger = folder / "ledger.parquet"
    facts = {key: text for key, text in pq.read_metadata(ledger).metadata.items() if key != b"ARROW:schema"}
    pq.write_table(pq.read_table(ledger).replace_schema_metadata(facts), ledger, compression="none")
    assert run(verify, folder).passed
    (fault,) = run(verify, folder, ledger_sha256=written.ledger.sha256).faults
    assert fault.kind is FaultKind.LEDGER


@BOTH
def test_a_missing_or_damaged_ledger(verify: Verify, folder: Path) -> None:
    ledger = folder / "ledger.parquet"
    flip(ledger, 40)
    assert {fault.kind for fault in run(verify, folder).faults} == {FaultKind.LEDGER}
    ledger.unlink()
    assert {fault.kind for fault in run(verify, folder).faults} == {FaultKind.LEDGER}


def test_an_encoder_that_lost_voxels_is_found_by_decoding(tmp_path: Path, monkeypatch: Any) -> None:
    real = ChunkCodec.encode_into

    def encode_into(self: ChunkCodec, chunk: Any, out: Any) -> Any:
        damaged = chunk.copy()
        damaged[0, 0, 0] ^= 1
        return real(self, damaged, out)

    with monkeypatch.context() as patched:
        patched.setattr(ChunkCodec, "encode_into", encode_into)
        written = write(ARRAY, tmp_path)
    assert run(verify_stored, tmp_path).passed
    faults = run(verify_decoded, tmp_path).faults
    assert {fault.kind for fault in faults} == {FaultKind.VOXELS}
    assert len(faults) == sum(n for state, n in written.chunks.items() if state in ("data", "padded"))
