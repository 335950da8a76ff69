"""`em discover` as a person runs it."""

import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.demo.replay import Trouble
from em_pipeline_tests.commands import em, run

pytestmark = pytest.mark.integration


def test_it_shows_what_would_be_taken_and_changes_nothing(environment: dict[str, str]) -> None:
    environment["EM_DISCOVERY__EMPIAR__NEVER"] = "99002"
    found = em(environment, "discover", "EMPIAR", "--since", "2025-01-01")
    assert found == {
        "take": ["empiar-99001"],
        "skipped": {
            "11759": "released on 2024-01-15, before 2025-01-01 (`since`)",
            "99002": "the list `never` names it",
        },
        "waiting": 0,
    }
    assert "empiar-99001" not in [row["dataset_id"] for row in em(environment, "ls", "--all")]
    shown = run(environment, "em", "discover", "empiar").stdout
    assert "Would be ingested (2)" in shown
    assert "the list `never` names it" in shown


def test_help_says_what_the_rules_ask_of_sizes_and_dates(environment: dict[str, str]) -> None:
    shown = " ".join(run(environment, "em", "discover", "--help").stdout.replace("│", " ").split())
    assert "An entry whose portal does not state its size is skipped unless max_size is none" in shown
    assert "on that day or later; those whose portal does not say when are skipped" in shown


def test_an_outage_and_a_source_that_lists_nothing(environment: dict[str, str], portal: DemoPortal) -> None:
    portal.trouble(Trouble.MISSING, "/search")
    portal.trouble(Trouble.MISSING, "/ebisearch/")
    assert run(environment, "em", "discover", "empiar").returncode == 4
    refused = run(environment, "em", "discover", "files")
    assert (refused.returncode, "no portal that lists them" in refused.stderr) == (2, True)
