"""Settings: order, provenance, refusals."""

from pathlib import Path

import pytest

from em_pipeline.domain.errors import InputRefused
from em_pipeline.settings import FOLDERS, ComputeBackend, Executor, load_settings


def test_defaults_are_embedded_below_home(tmp_path: Path) -> None:
    loaded = load_settings(tmp_path, {"EM_HOME": str(tmp_path / "em")})
    assert loaded.settings.store == (tmp_path / "em" / "store").as_uri()
    assert loaded.settings.dagster_folder == tmp_path / "em" / "dagster"
    assert loaded.provenance == {"home": "EM_HOME in the environment"}


def test_environment_beats_file_and_both_are_named(tmp_path: Path) -> None:
    (tmp_path / "em.yaml").write_text("threads: 3\napi_port: 9000\nmemory_budget: 512MiB\n")
    loaded = load_settings(tmp_path, {"EM_API_PORT": "9001"})
    assert (loaded.settings.threads, loaded.settings.api_port) == (3, 9001)
    assert loaded.settings.memory_budget == 512 << 20
    assert loaded.provenance["threads"] == str(tmp_path / "em.yaml")
    assert loaded.provenance["api_port"] == "EM_API_PORT in the environment"


def test_interpolation_takes_the_variable_or_the_default(tmp_path: Path) -> None:
    (tmp_path / "em.yaml").write_text('home: "${DATA:/tmp}/em"\nstore_url: "${STORE:}"\n')
    assert load_settings(tmp_path, {"DATA": str(tmp_path)}).settings.home == tmp_path / "em"


def test_an_unset_reference_is_refused(tmp_path: Path) -> None:
    (tmp_path / "em.yaml").write_text('home: "${NOWHERE}/em"\n')
    with pytest.raises(InputRefused, match=r"NOWHERE.*not set"):
        load_settings(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        ("store_ulr: x\n", {}, "nearest is store_url"),
        ("", {"EM_STORE_ULR": "x"}, "nearest is EM_STORE_URL"),
        ("executor: multiproces\n", {}, "Give one of: in-process, multiprocess"),
        ("compute: spark\n", {}, "it is none of the choices. Give one of: threads, dask"),
        ("compute: dask\n", {}, "compute is dask, which needs one. dask_scheduler: tcp://<host>"),
        ("dask_scheduler: localhost:8786\n", {}, "it is not tcp://<host>:<port>"),
        ("threads: many\n", {}, "'many' does not fit: it is no whole number"),
        ("", {"EM_MEMORY_BUDGET": "much"}, "'much' does not fit: it is no number of bytes, KiB, MiB"),
        ("", {"EM_MEMORY_BUDGET": "1 XB"}, "'1 XB' does not fit: it is no number of bytes, KiB, MiB"),
        ("", {"EM_DASK_SCHEDULER": "here"}, "'here' does not fit: it is not tcp://<host>:<port>"),
        ("threads: 0\n", {}, "0 does not fit: it is less than 1"),
        ("", {"EM_MEMORY_BUDGET": "128MiB"}, "'128MiB' does not fit: it is less than 256.0 MiB"),
        ("", {"EM_DIRECT_IO": "maybe"}, "it is neither true nor false"),
        ("- a\n- b\n", {}, "not a mapping"),
        ("a: [\n", {}, "not YAML"),
        ("", {"EM_SOURCES__EMPIAR": "x"}, "EM_SOURCES__<SLUG>__<OPTION>"),
        ("", {"EM_CONFIG": "/nowhere/em.yaml"}, "/nowhere/em.yaml"),
        ("sources: {empire: {api: x}}\n", {}, "nearest is empiar"),
        ("", {"EM_SOURCES__FILE__RETRIES": "1"}, "nearest is files"),
        ("", {"EM_DISCOVERY__EMPIRE__CAP": "1"}, "nearest is empiar"),
        ("", {"EM_DISCOVERY": "x"}, "EM_DISCOVERY__<SLUG>__<OPTION>"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, text: str, environ: dict[str, str], message: str
) -> None:
    (tmp_path / "em.yaml").write_text(text)
    with pytest.raises(InputRefused) as refusal:
        load_settings(tmp_path, environ)
    assert message in str(refusal.value)


def test_source_options_come_from_file_and_environment(tmp_path: Path) -> None:
    (tmp_path / "em.yaml").write_text("sources: {empiar: {api_url: 'http://a', files_url: 'http://b'}}\n")
    loaded = load_settings(tmp_path, {"EM_SOURCES__EMPIAR__API_URL": "http://c"})
    assert loaded.settings.sources == {"empiar": {"api_url": "http://c", "files_url": "http://b"}}


def test_a_number_in_a_source_s_options_is_text(tmp_path: Path) -> None:
    (tmp_path / "em.yaml").write_text("sources: {empiar: {retries: 3}}\n")
    assert load_settings(tmp_path, {}).settings.sources == {"empiar": {"retries": "3"}}


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {"EM_THREADS": "", "EM_HOME": ""}).provenance == {}


def test_dask_is_chosen_with_its_scheduler() -> None:
    environ = {"EM_COMPUTE": "dask", "EM_DASK_SCHEDULER": "tcp://[::1]:8786"}
    settings = load_settings(Path("/"), environ).settings
    assert (settings.compute, settings.dask_scheduler) == (ComputeBackend.DASK, "tcp://[::1]:8786")


def test_executor_names() -> None:
    assert (
        load_settings(Path("/"), {"EM_EXECUTOR": "multiprocess"}).settings.executor is Executor.MULTIPROCESS
    )


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    loaded = load_settings(tmp_path, {"EM_DATABASE_URL": "postgresql://em:secret@db:5432/em"})
    shown = {key: value for key, value, _ in loaded.shown()}
    assert shown["database_url"] == "postgresql://em:***@db:5432/em"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:abc/d",
        "postgresql://u:hunter2@[bad",
        "postgresql://u:hunter2@h:1,h:2/d",
        "u:hunter2@h",
    ],
)
def test_what_is_no_database_url_is_refused_unseen(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputRefused, match="EM_DATABASE_URL") as refusal:
        load_settings(tmp_path, {"EM_DATABASE_URL": url})
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:5432/d",
        "postgresql+psycopg://u:hunter2@[::1]:5432/d?sslmode=require",
        "postgresql://u:hunter2/:[x@h/d",
        "postgresql:///d",
    ],
)
def test_database_urls_are_shown_without_their_password(tmp_path: Path, url: str) -> None:
    loaded = load_settings(tmp_path, {"EM_DATABASE_URL": url})
    assert loaded.settings.database_url == url
    assert "hunter2" not in str(loaded.shown())


@pytest.mark.parametrize("sources", ["[1]", "{empiar: hi}", "7"])
def test_an_option_cannot_be_added_to_what_is_no_mapping(tmp_path: Path, sources: str) -> None:
    (tmp_path / "em.yaml").write_text(f"sources: {sources}\n")
    with pytest.raises(InputRefused, match=r"EM_SOURCES__EMPIAR__API.*em\.yaml.*\{empiar: \{api:"):
        load_settings(tmp_path, {"EM_SOURCES__EMPIAR__API": "http://h"})


def test_null_is_not_set(tmp_path: Path) -> None:
    text = "home:\nthreads: null\nsources: {empiar: {api:, retries: 2}, files:}\n"
    (tmp_path / "em.yaml").write_text(text)
    loaded = load_settings(tmp_path, {})
    assert loaded.settings.home == load_settings(tmp_path / "elsewhere", {}).settings.home
    assert loaded.settings.sources == {"empiar": {"retries": "2"}}
    assert set(loaded.provenance) == {"sources"}


@pytest.mark.parametrize("key", FOLDERS)
def test_folders_are_followed_from_the_home_folder_and_from_here(tmp_path: Path, key: str) -> None:
    for text, path in (("~/em", Path.home() / "em"), ("em", tmp_path / "em")):
        settings = load_settings(tmp_path, {f"EM_{key.upper()}": text}).settings
        assert getattr(settings, key) == path.resolve()


@pytest.mark.parametrize("key", FOLDERS)
def test_a_folder_that_cannot_be_followed_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("~nobody-of-that-name/em", "loop/em"):
        with pytest.raises(InputRefused, match=f"EM_{key.upper()}"):
            load_settings(tmp_path, {f"EM_{key.upper()}": path})
