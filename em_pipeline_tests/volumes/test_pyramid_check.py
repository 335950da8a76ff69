from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.domain.progress import Silent
from em_pipeline.volumes import encode
from em_pipeline.volumes.downsample import reduction
from em_pipeline.volumes.pyramid_check import coarser_faults
from em_pipeline.volumes.rechunk import WrittenVolume
from em_pipeline.volumes.scratch import ScratchReader
from em_pipeline.volumes.verify import verify_decoded
from em_pipeline_tests.volumes.written import places, random_voxels, write

ARRAY = random_voxels((17, 20, 33), "uint16")
ALL = 10**6


def faults(folder: Path, sample: int = ALL, seed: str = "s") -> list[str]:
    return coarser_faults(*places(folder), sample=sample, seed=seed)


def written_without(folder: Path, monkeypatch: pytest.MonkeyPatch, level: int) -> WrittenVolume:
    """A volume whose `level` was made from zeros, with a ledger that agrees."""

    def read_chunks(self: ScratchReader, wanted: Iterable[tuple[Shape, Any]], held: int) -> None:
        chunks = list(wanted)
        real(self, chunks, held)
        if self.finer.index + 1 == level:
            for _, out in chunks:
                out[...] = 0

    real = ScratchReader.read_chunks
    with monkeypatch.context() as patched:
        patched.setattr(ScratchReader, "read_chunks", read_chunks)
        return write(ARRAY, folder)


@pytest.mark.parametrize("shape", [(17, 20, 33), (1, 9, 40), (4, 4, 4)])
@pytest.mark.parametrize(("dtype", "kind"), [("uint8", "image"), ("uint64", "labels"), ("float32", "image")])
def test_a_sound_pyramid_has_no_faults(
    tmp_path: Path, shape: tuple[int, int, int], dtype: str, kind: str
) -> None:
    array = random_voxels(shape, dtype)
    if dtype == "float32":
        array[0, 0, :3] = np.nan, np.inf, -np.inf
    write(array, tmp_path, kind=kind)
    assert faults(tmp_path) == []


def test_anisotropic_voxels_are_not_halved_along_z(tmp_path: Path) -> None:
    written = write(ARRAY, tmp_path, voxel_size=VoxelSize(z=40, y=8, x=8))
    assert written.levels[1].shape.z == ARRAY.shape[0]
    assert faults(tmp_path) == []


@pytest.mark.parametrize("level", [1, 2])
def test_a_level_of_zeros_that_its_ledger_agrees_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    written = written_without(tmp_path, monkeypatch, level)
    assert verify_decoded(*places(tmp_path), threads=1, progress=Silent()).passed
    found = faults(tmp_path)
    assert len(found) >= np.ceil(written.levels[level].chunk_grid.voxels / 2)
    assert all(f"level {level} chunk (" in line for line in found)


def test_one_wrong_voxel_is_named_with_its_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_chunks(self: ScratchReader, wanted: Iterable[tuple[Shape, Any]], held: int) -> None:
        chunks = list(wanted)
        real(self, chunks, held)
        for index, out in chunks:
            if (self.finer.index, index) == (0, (1, 1, 1)):
                out[1, 1, 1] ^= 1

    real = ScratchReader.read_chunks
    monkeypatch.setattr(ScratchReader, "read_chunks", read_chunks)
    write(ARRAY, tmp_path)
    (line,) = faults(tmp_path)
    assert line.startswith("level 1 chunk (1, 1, 1) (z, y, x): 1 of its voxels")


def test_labels_are_not_held_to_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(encode, "reduction", lambda _: reduction("image"))
        write(ARRAY, tmp_path, kind="labels")
    assert faults(tmp_path)


def test_a_sample_is_bounded_and_the_seed_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_without(tmp_path, monkeypatch, 1)
    assert 1 <= len(faults(tmp_path, sample=3)) <= 3
    assert faults(tmp_path, sample=3) == faults(tmp_path, sample=3)
    assert len({tuple(faults(tmp_path, sample=3, seed=str(seed))) for seed in range(5)}) > 1


def test_an_unreadable_chunk_is_an_error_not_a_verdict(tmp_path: Path) -> None:
    write(ARRAY, tmp_path)
    (tmp_path / "volume.ome.zarr/1/c/0/0/0").unlink()
    with pytest.raises(ChunkCorrupt, match="level 1"):
        faults(tmp_path)
