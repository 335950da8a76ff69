"""How many pages a TIFF has: every directory read, a sample of them, or not known; never guessed."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from em_pipeline.domain.errors import BudgetSpent
from em_pipeline.formats.tiff_chain import Chain, Directories, survey
from em_pipeline_tests.formats.sparse_tiff import Layout, itk, sparse

SHAPE = (400, 300, 400)


def chain_of(path: Path, *, big: bool = False, order: str = "<") -> Chain:
    with path.open("rb") as file:
        file.seek(8 if big else 4)
        (first,) = struct.unpack(f"{order}{'Q' if big else 'I'}", file.read(8 if big else 4))
        return survey(Directories(file, order, big=big), first, path.stat().st_size)


def patched(path: Path, page: int, change: Callable[[bytes], bytes]) -> None:
    """Change one directory of a file of `sparse` with the default layout."""
    plane, size = SHAPE[1] * SHAPE[2], 2 + 12 * 9 + 4
    at = 8 + page * (plane + size) + plane
    with path.open("r+b") as file:
        file.seek(at)
        table = file.read(size)
        file.seek(at)
        file.write(change(table))


@pytest.mark.parametrize("where", ["start", "end"])
@pytest.mark.parametrize("big", [False, True])
def test_directories_that_lie_together_are_all_read(tmp_path: Path, where: str, big: bool) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE, Layout(together=where, big=big))
    assert chain_of(path, big=big) == Chain(400, 400)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("described", [b"", b"words that only the first page has"])
def test_directories_behind_their_pages_are_sampled(
    tmp_path: Path, order: str, big: bool, described: bytes
) -> None:
    layout = Layout(big=big, order=order, description=described)
    chain = chain_of(sparse(tmp_path / "a.tif", SHAPE, layout), big=big, order=order)
    assert chain == Chain(400, 8)
    assert not chain.whole


def test_as_itk_writes_them(tmp_path: Path) -> None:
    assert chain_of(itk(tmp_path / "a.tif")) == Chain(1065, 8)


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 5, 6, 7, 50])
def test_any_number_of_pages(tmp_path: Path, pages: int) -> None:
    chain = chain_of(sparse(tmp_path / "a.tif", (pages, 300, 400)))
    assert chain.count == pages
    assert chain.read <= pages


def test_data_behind_the_last_page_does_not_hide_it(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 10 * 300 * 400)
    assert chain_of(path).count == 400


def test_pages_at_changing_distances_are_not_counted(tmp_path: Path) -> None:
    chain = chain_of(sparse(tmp_path / "a.tif", SHAPE, Layout(gaps=(0, 10, 2))))
    assert chain == Chain(None, 4)


@pytest.mark.parametrize("page", [3, 102, 201, 300, 399])
def test_a_page_of_another_size_where_it_is_looked_for_is_no_plane(tmp_path: Path, page: int) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE)
    patched(path, page, lambda table: table.replace(struct.pack("<I", 300), struct.pack("<I", 299)))
    assert chain_of(path).count is None


def test_a_chain_that_leads_elsewhere_is_not_counted(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE)
    patched(path, 201, lambda table: table[:-4] + struct.pack("<I", 8))
    assert chain_of(path).count is None


def test_a_chain_that_ends_early_is_not_counted_further(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE)
    patched(path, 201, lambda table: table[:-4] + struct.pack("<I", 0))
    assert chain_of(path).count is None


@pytest.mark.parametrize("page", [0, 2])
def test_a_ring_of_directories_ends(tmp_path: Path, page: int) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE)
    first = 8 + SHAPE[1] * SHAPE[2]
    patched(path, page, lambda table: table[:-4] + struct.pack("<I", first))
    assert chain_of(path).count is None


@pytest.mark.parametrize("size", [8, 9, 100, 300 * 400 + 30, 2 * 300 * 400])
def test_a_file_that_ends_first_is_not_counted(tmp_path: Path, size: int) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE)
    with path.open("r+b") as file:
        file.truncate(size)
    assert chain_of(path).count is None


def test_a_spent_budget_leaves_what_was_read(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", SHAPE)
    with path.open("rb") as file:
        directories = Directories(file, "<", big=False)
        read, left = directories.read, [2]

        def sparing(offset: int) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise BudgetSpent("", "", "")
            return read(offset)

        directories.read = sparing  # type: ignore[method-assign,assignment]
        assert survey(directories, 8 + 300 * 400, path.stat().st_size) == Chain(None, 2)
