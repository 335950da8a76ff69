"""The arithmetic of `benchmarks/rechunk.py`, its inputs, and that it runs; never how long anything takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rechunking.inputs import WRITERS, planes, shape_of
from benchmarks.rechunking.measure import Run, run_once
from benchmarks.rechunking.report import RowResult, as_json, ratio, summary, table
from benchmarks.rechunking.rows import IGNEOUS, OURS, Contender, Goal, Row, chosen, rows
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.open import open_volume

ROOT = Path(__file__).resolve().parents[2]
PEER, OTHER, LIMIT, WORK = (
    Contender("peer", "peer.py"),
    Contender("other", "other.py"),
    Contender("limit", "limits.py", limit="encode"),
    Contender("work", "limits.py", limit="read"),
)
ROW = Row(
    "row",
    "A row",
    "tiff",
    (Contender(OURS, "ours.py"), PEER, OTHER, LIMIT, WORK),
    (Goal(("peer", "other"), 2.0), Goal(("limit",), 0.5), Goal(("limit", "work"), None, together=True)),
    rss_at_most=300,
)


def runs(*seconds: float, rss: int = 100, failure: str = "") -> list[Run]:
    return [Run(each, rss, each, 50, 3, 0.0, failure) for each in seconds]


def result(missing: dict[str, str] | None = None, **each: list[Run]) -> RowResult:
    return RowResult(ROW, 10_000_000, {OURS: runs(2, 4, 3), **each}, missing or {})


def test_a_ratio_is_the_median_over_the_turns_not_of_the_medians() -> None:
    found = ratio(Goal(("peer",), 2.0), result(peer=runs(10, 4, 9)))
    assert found is not None
    assert (found.median, found.least, found.greatest) == (3.0, 1.0, 5.0)
    assert found.reached


def test_the_fastest_of_several_is_the_yardstick() -> None:
    found = ratio(ROW.goals[0], result(peer=runs(9, 9, 9), other=runs(3, 3, 3)))
    assert found is not None
    assert found.against == "other"
    assert not found.reached


def test_limits_of_work_that_follows_itself_are_added() -> None:
    found = ratio(ROW.goals[2], result(limit=runs(1, 1, 1), work=runs(1, 3, 2)))
    assert found is not None
    assert (found.against, found.median, found.reached) == ("limit + work", 1.0, None)


@pytest.mark.parametrize(
    "others", [{}, {"peer": runs(1, 1, 1, failure="exit 1: no")}], ids=["missing", "failed"]
)
def test_what_did_not_run_has_no_ratio(others: dict[str, list[Run]]) -> None:
    assert ratio(Goal(("peer",), 2.0), result(**others)) is None


def test_tables_name_what_did_not_run_and_what_was_not_reached() -> None:
    found = result(
        {"other": "there is no .venv-peers"},
        peer=runs(9, 9, 9, failure="exit 1: boom"),
        limit=runs(1, 1, 1),
        work=runs(1, 1, 1),
    )
    text = table(found)
    assert "| other | **did not run**: there is no .venv-peers |" in text
    assert "| peer | **did not run**: exit 1: boom |" in text
    assert "| ours | 3.00 | 2.00–4.00 | 3 |  | 0 | 3.0 | 0.00 | 3 |" in text
    lines = summary([found]).splitlines()
    assert "| A row | 3 | peer or other | ≥ 2.00× | not measured | – |" in lines
    assert "| A row | 3 | limit | ≥ 50% | 33% (25%–50%) | **no** |" in lines
    assert "| A row | 3 | limit + work |  | 67% (50%–100%) |  |" in lines
    assert any("| peak RSS | ≤ 0 MB | 0 MB | yes |" in line for line in lines)
    assert as_json(found)["ratios"][0]["median"] == pytest.approx(1 / 3)


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in chosen(rows(1024), ["int16", "tiff"])] == ["tiff", "int16"]
    assert len(chosen(rows(1024), [])) == len(rows(1024))
    with pytest.raises(ValueError, match="no row is called \\['tif'\\]"):
        chosen(rows(1024), ["tif"])


def test_an_unknown_row_is_an_error_of_the_command_line() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "rechunk.py"), "--only", "tiff,nope"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "error: argument --only: no row is called ['nope']; rows: tiff, " in done.stderr
    assert "Traceback" not in done.stderr


def test_titles_say_the_shape_that_was_measured() -> None:
    (row,) = chosen(rows(1024), ["int16"])
    assert row.of_shape(shape_of("int16", 1024)).title == "TIFF 512×2520×2596 int16"
    assert row.of_shape(shape_of("int16", 64)).title == "TIFF 32×2520×2596 int16"


def test_every_goal_is_against_a_contender_of_its_row() -> None:
    for row in rows(1024):
        names = {contender.name for contender in row.contenders}
        assert {name for goal in row.goals for name in goal.against} < names
        assert row.kind in WRITERS


def test_a_run_is_timed_measured_and_cleaned_away(tmp_path: Path) -> None:
    output = tmp_path / "output"
    code = (
        "import os, pathlib, sys; os.mkdir(sys.argv[1]); x = b'.' * 200_000_000; "
        "pathlib.Path(sys.argv[1], 'a').write_bytes(x[:5])"
    )
    command = [sys.executable, "-c", code, str(output)]
    run = run_once(command, output, {}, reports=False, limit_s=60)
    assert (run.stored_bytes, run.files, run.failure) == (5, 1, "")
    assert run.rss_bytes > 200_000_000
    assert not output.exists()


def test_limits_report_their_own_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('x'); print('{\"seconds\": 0.25}')"]
    assert run_once(command, tmp_path / "none", {}, reports=True, limit_s=60).seconds == 0.25


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    run = run_once(
        [sys.executable, "-c", "raise SystemExit('boom')"], tmp_path / "none", {}, reports=True, limit_s=60
    )
    assert run.failure == "exit 1: boom"
    run = run_once(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        tmp_path / "none",
        {},
        reports=False,
        limit_s=0.2,
    )
    assert run.failure.startswith("exit -9")


@pytest.mark.parametrize("kind", WRITERS)
def test_inputs_hold_the_voxels_that_they_should(kind: str, tmp_path: Path) -> None:
    dtype, write = WRITERS[kind]
    shape = (70, 80, 90)
    write(tmp_path / kind, shape, dtype)
    expected = np.stack(list(planes(tmp_path, shape, dtype)))
    with open_volume([tmp_path / kind]) as volume:
        found: Any = volume.read(BoundingBox.of_shape(shape))
    assert found.dtype == dtype
    if kind == "jpeg":
        assert np.abs(found.astype(int) - expected.astype(int)).mean() < 8
    else:
        assert np.array_equal(found, expected)


def test_sizes_are_as_asked() -> None:
    assert shape_of("tiff", 1024) == (1024, 1024, 1024)
    assert shape_of("tiff", 8) == (128, 256, 256)
    assert shape_of("int16", 1024) == (512, 2520, 2596)


@pytest.mark.slow
def test_it_runs_without_peers_and_names_them(tmp_path: Path) -> None:
    report = tmp_path / "result.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "rechunk.py"),
        "--touch-mib",
        "1",
        "--size-mib",
        "2",
        "--repetitions",
        "1",
    ]
    command += ["--only", "tiff,tiff-lzw", "--json", str(report), "--folder", str(tmp_path / "work")]
    command += ["--peers", str(tmp_path / "no-peers" / "bin" / "python")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| igneous | **did not run**: there is no no-peers: `make bench` builds it |" in done.stdout
    found = json.loads(report.read_text(encoding="utf-8"))
    assert [row["row"] for row in found["rows"]] == ["tiff", "tiff-lzw"]
    for row in found["rows"]:
        ran = set(row["runs"])
        assert ran | set(row["missing"]) == {
            c.name for r in rows(1024) if r.name == row["row"] for c in r.contenders
        }
        assert set(row["missing"]) <= {IGNEOUS.name}
        assert all(run["seconds"] > 0 and not run["failure"] for each in row["runs"].values() for run in each)
        assert all(run["stored_bytes"] > 0 for run in row["runs"][OURS])
    assert list((tmp_path / "work").iterdir()) == []
