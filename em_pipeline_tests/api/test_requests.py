"""Requests that make no sense, and failures nobody foresaw: always a problem document, never our insides."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from em_pipeline.api.app import create_app
from em_pipeline.api.server import serve_in_thread
from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.entries import DatasetSummary
from em_pipeline.catalog.repository import Catalog
from em_pipeline.storage.store import LocalStore
from em_pipeline_tests.api.conftest import DATASET

# Nothing listens there: what is refused is refused before the database is asked.
NO_DATABASE = "postgresql://em:secret@127.0.0.1:1/em"
GOOD = {"dataset_id": "files-any", "z": "0", "y": "0", "x": "0"}


class BrokenCatalog(Catalog):
    """Fails in a way that nobody foresaw."""

    def published(self) -> list[DatasetSummary]:
        raise RuntimeError("insides: /secret/place")


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    catalog = BrokenCatalog(create_engine_for(NO_DATABASE))
    app = create_app(catalog, LocalStore(tmp_path_factory.mktemp("store")))
    with serve_in_thread(app) as url, httpx.Client(base_url=url, timeout=20) as plain:
        yield plain


def problem_of(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["slug"] == slug
    assert document["type"].endswith(slug)
    assert document["tried"]
    assert document["found"]
    assert document["detail"].startswith(f"{document['tried']}: {document['found']}")
    return document


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("z", "-1"),
        ("z", "nan"),
        ("z", "inf"),
        ("z", "1.5"),
        ("z", ""),
        ("z", "1e400"),
        ("z", "9" * 5000),
        ("y", "0; DROP TABLE datasets"),
        ("x", "\u0663"),  # a digit, but of another script, as int() would accept
        ("level", "-1"),
        ("level", "full"),
        ("size", "128"),
        ("size", "128,128"),
        ("size", "128,128,128,1"),
        ("size", "-1,128,128"),
        ("size", "0,128,128"),
        ("size", "1.0,2,3"),
        ("size", "9999999999,1,1"),
        ("size", "1,1,\u0663"),
        ("size", "1,1,1\n"),
        ("format", "tiff"),
        ("dataset_id", "x" * 1000),
        ("levle", "1"),
    ],
)
def test_nonsense_is_refused(refusing: httpx.Client, name: str, value: str) -> None:
    answer = refusing.get("/api/v1/block", params={**GOOD, name: value})
    document = problem_of(answer, 422, "input-refused")
    assert name in document["detail"]
    assert len(document["detail"]) < 500


@pytest.mark.parametrize("missing", ["dataset_id", "z", "y", "x"])
def test_what_is_missing_is_named(refusing: httpx.Client, missing: str) -> None:
    given = {name: value for name, value in GOOD.items() if name != missing}
    assert missing in problem_of(refusing.get("/api/v1/block", params=given), 422, "input-refused")["found"]


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=1001", "limit=many", "sauce=empiar"])
def test_a_listing_of_nonsense(refusing: httpx.Client, query: str) -> None:
    problem_of(refusing.get(f"/api/v1/datasets?{query}"), 422, "input-refused")


def test_other_paths_and_methods(refusing: httpx.Client) -> None:
    problem_of(refusing.get("/api/v1/blocks"), 404, "no-such-path")
    problem_of(refusing.get("/api/v1/../../etc/passwd"), 404, "no-such-path")
    answer = refusing.post("/api/v1/block")
    problem_of(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"


def test_an_outage_says_when_to_come_back(refusing: httpx.Client) -> None:
    answer = refusing.get("/api/v1/block", params=GOOD)
    assert "secret" not in problem_of(answer, 503, "service-unavailable")["detail"]
    assert answer.headers["retry-after"] == "1"
    problem_of(refusing.get("/health"), 503, "service-unavailable")


def test_an_unforeseen_error_tells_nothing(refusing: httpx.Client) -> None:
    answer = refusing.get("/api/v1/datasets")
    problem_of(answer, 500, "internal-error")
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text


def test_other_origins_get_no_permission(refusing: httpx.Client) -> None:
    answer = refusing.get("/openapi.json", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_description_is_complete(refusing: httpx.Client) -> None:
    document = refusing.get("/openapi.json").json()
    assert set(document["paths"]) == {"/health", "/api/v1/datasets", "/api/v1/metadata", "/api/v1/block"}
    for path, methods in document["paths"].items():
        assert set(methods) == {"get"}, path
        for parameter in methods["get"].get("parameters", []):
            assert parameter["in"] == "header" or parameter.get("description"), (path, parameter["name"])
        for status, answer in methods["get"]["responses"].items():
            if int(status) >= 400:
                assert set(answer["content"]) == {"application/problem+json"}, (path, status)


@pytest.mark.integration
def test_places_that_do_not_exist(http: httpx.Client) -> None:
    good = {"dataset_id": DATASET, "z": 0, "y": 0, "x": 0}
    for wrong in (
        {"level": 99},
        {"z": 150},
        {"x": 10**18},
        {"y": 2**70},
        {"level": 1, "y": 70},
        {"version": "no"},
    ):
        answer = http.get("/api/v1/block", params={**good, **wrong})
        assert DATASET in problem_of(answer, 404, "not-found")["detail"]
    for unknown in ("", "files-none", "../../etc/passwd", "files-\0", "'; --", "Files-Noise"):
        for path in ("/api/v1/block", "/api/v1/metadata"):
            given = {**good, "dataset_id": unknown} if path.endswith("block") else {"dataset_id": unknown}
            problem_of(http.get(path, params=given), 404, "not-found")
