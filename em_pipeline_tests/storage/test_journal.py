"""The journal of a download, torn by power cuts and full disks."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.storage.journal import Places, Plan, append_parts, begin_journal, resume_journal

PLAN = Plan("http://a/b", 1000, None, None, part_size=4, offset=0, total=1000)


def begun(folder: Path) -> Places:
    places = Places(folder / "file", folder / "part", folder / "journal")
    places.part.write_bytes(bytes(PLAN.size))
    begin_journal(places.journal, PLAN)
    return places


@given(
    rounds=st.lists(
        st.tuples(st.lists(st.integers(0, 249), min_size=1, max_size=4), st.integers(0, 6)), max_size=5
    )
)
def test_no_part_is_held_that_was_not_recorded_however_often_the_end_is_torn(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[list[int], int]]
) -> None:
    places = begun(tmp_path_factory.mktemp("journal"))
    beginning = places.journal.stat().st_size
    recorded: set[int] = set()
    for parts, torn in rounds:
        append_parts(places.journal, parts)
        recorded |= set(parts)
        os.truncate(places.journal, max(beginning, places.journal.stat().st_size - torn))
        found = resume_journal(places)
        assert found is not None
        assert found[1] <= recorded
        recorded = found[1]


def test_a_line_that_the_disk_takes_in_pieces_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = begun(tmp_path)
    real = Path.open

    class Slow:
        def __init__(self, file: object) -> None:
            self._file = file

        def __enter__(self) -> "Slow":
            return self

        def __exit__(self, *exc: object) -> None:
            self._file.close()  # type: ignore[attr-defined]

        def write(self, text: bytes) -> int:
            return self._file.write(text[:1])  # type: ignore[attr-defined,no-any-return]

        def fileno(self) -> int:
            return self._file.fileno()  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(Path, "open", lambda path, *how, **options: Slow(real(path, *how, **options)))
    append_parts(places.journal, [12, 345])
    monkeypatch.undo()
    assert places.journal.read_text().endswith("\n12\n345\n")
