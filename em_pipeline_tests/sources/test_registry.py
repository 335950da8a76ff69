"""Entry points become sources, or an error that names the one to blame."""

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from em_pipeline.domain.errors import InputRefused
from em_pipeline.settings import SOURCE_GROUP
from em_pipeline.sources.empiar import EmpiarSource
from em_pipeline.sources.files import FilesSource
from em_pipeline.sources.registry import SourceNotLoaded, load_sources
from em_pipeline.storage.object_urls import ObjectEndpoints

HERE = "em_pipeline_tests.sources.test_registry"
FILES = "em_pipeline.sources.files:FilesSource"


class OtherFiles(FilesSource):
    """Takes the slug of another source."""


class Unfinished:
    """Has a slug and nothing else."""

    slug = "unfinished"


class Shouting(FilesSource):
    slug = "Files-2"


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=SOURCE_GROUP)


def test_the_installed_sources_load() -> None:
    sources = load_sources()
    assert isinstance(sources["empiar"], EmpiarSource)
    assert isinstance(sources["files"], FilesSource)
    assert list(sources) == sorted(sources)


def test_options_reach_the_constructor() -> None:
    source = load_sources({"empiar": {"api": "http://127.0.0.1:1", "retries": "0"}})["empiar"]
    assert isinstance(source, EmpiarSource)
    assert source._api == "http://127.0.0.1:1"
    assert source._retries == 0


STORES = ObjectEndpoints(s3="http://s3.test", gs="http://gs.test", s3_region="eu-west-1", s3_anonymous=False)


@pytest.mark.parametrize("slug", ["files", "flyem", "omezarr", "openorganelle", "precomputed"])
def test_object_stores_of_the_settings_reach_the_sources_that_ask_them(slug: str) -> None:
    assert load_sources(endpoints=STORES)[slug]._endpoints == STORES


def test_a_source_s_own_store_comes_before_that_of_all() -> None:
    options = {"precomputed": {"gs": "http://mine.test"}, "omezarr": {"s3": "http://mine.test"}}
    sources = load_sources(options, endpoints=STORES)
    assert sources["precomputed"]._endpoints == replace(STORES, gs="http://mine.test")
    assert sources["omezarr"]._endpoints == replace(STORES, s3="http://mine.test")


def test_stores_are_no_option_of_one_source() -> None:
    with pytest.raises(InputRefused, match="no option 'endpoints'"):
        load_sources({"files": {"endpoints": "http://x"}})


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("files", FILES), ("files", f"{HERE}:OtherFiles")], ["OtherFiles", "already"]),
        (
            [("gone", "em_pipeline.no_such_module:Source")],
            ["gone = em_pipeline.no_such_module", "ModuleNotFound"],
        ),
        ([("gone", "em_pipeline.sources.files:NoSuchSource")], ["gone = ", "NoSuchSource"]),
        ([("unfinished", f"{HERE}:Unfinished")], ["unfinished = ", "lacks", "fetch_record", "institution"]),
        ([("group", f"{HERE}:HERE")], ["group = ", "not a class"]),
        ([("renamed", FILES)], ["renamed = ", "'files'"]),
        ([("Files-2", f"{HERE}:Shouting")], ["Files-2 = ", "lower-case"]),
    ],
)
def test_a_bad_entry_point_is_named(entries: list[tuple[str, str]], words: list[str]) -> None:
    with pytest.raises(SourceNotLoaded) as raised:
        load_sources(found=[entry(*one) for one in entries])
    for word in words:
        assert word in str(raised.value)


def test_settings_of_an_absent_source_are_refused() -> None:
    with pytest.raises(InputRefused, match=r"empir.*no such source.*empiar"):
        load_sources({"empir": {"api": "http://x"}})


def test_an_option_that_a_source_lacks_is_refused() -> None:
    with pytest.raises(InputRefused, match=r"no option 'apo'.*api"):
        load_sources({"empiar": {"apo": "http://x"}})


def test_an_option_that_does_not_fit_names_the_entry_point() -> None:
    with pytest.raises(SourceNotLoaded, match=r"empiar = .*ValueError.*many"):
        load_sources({"empiar": {"retries": "many"}})
