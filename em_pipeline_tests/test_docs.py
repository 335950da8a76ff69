"""What the documents say exists, exists."""

import re
from pathlib import Path

import pytest

from em_pipeline.cli.app import app
from em_pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("sdk/python/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
NAMED_FILE = re.compile(r"`((?:em_pipeline|em_pipeline_tests|docs|sdk)/[\w./-]+)`")
IN_PACKAGE = re.compile(
    r"`((?:domain|formats|volumes|storage|sources|catalog|api|ingest|assets|cli)/\w+\.\w+)`"
)
VERB = re.compile(r"^em (\w+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [name for name in NAMED_FILE.findall(text) if not (ROOT / name).exists()]
    missing += [name for name in IN_PACKAGE.findall(text) if not (ROOT / "em_pipeline" / name).exists()]
    assert missing == []


def test_the_readme_s_verbs_and_settings_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    verbs = {command.name for command in app.registered_commands} | {"db"}
    assert set(VERB.findall(text)) <= verbs
    named = text.split("## Settings")[1].split("##")[0]
    assert set(re.findall(r"`([a-z_]+)`", named)) <= set(Settings.model_fields)


def test_the_makefile_has_the_readme_s_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target == "and" or re.search(rf"^{target}:", makefile, re.MULTILINE), target
