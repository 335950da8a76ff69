"""The real `dagster` command, on instances that were never used."""

from pathlib import Path

import pytest

from em_pipeline_tests.commands import em, materialize_command, run

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize("home", ["empty folder", "not set"])
def test_materialize_works_on_a_fresh_instance(
    environment: dict[str, str], tmp_path: Path, home: str
) -> None:
    if home == "empty folder":
        (tmp_path / "dagster").mkdir()
        environment["DAGSTER_HOME"] = str(tmp_path / "dagster")
    done = run(environment, *materialize_command("empiar", "empiar-11759"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = em(environment, "ls")
    assert (row["dataset_id"], row["shape"]) == ("empiar-11759", [16, 110, 99])


def test_the_multiprocess_executor_runs_the_same_graph(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"EM_EXECUTOR": "multiprocess", "DAGSTER_HOME": str(tmp_path)}
    done = run(environment, *materialize_command("empiar", "empiar-11759"))
    assert done.returncode == 0, done.stderr
    assert len(em(environment, "ls")) == 1


def test_a_registered_dataset_is_a_partition_of_every_instance(environment: dict[str, str]) -> None:
    assert em(environment, "register", "EMPIAR-99001") == {
        "dataset_id": "empiar-99001",
        "source": "empiar",
        "new": True,
    }
    done = run(environment, *materialize_command("empiar", "empiar-99001"))
    assert done.returncode == 0, done.stderr
    assert [row["dataset_id"] for row in em(environment, "ls")] == ["empiar-99001"]


def test_an_unknown_partition_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    environment["DAGSTER_HOME"] = str(tmp_path)
    done = run(environment, *materialize_command("empiar", "empiar-1"))
    assert done.returncode != 0
    assert "empiar-1" in done.stderr
