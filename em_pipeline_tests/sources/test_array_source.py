"""Arrays stored as many objects: which requests find those of a box, and large mirrors at little cost."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.demo.replay import Replay, Reply, Request, text
from em_pipeline.domain.errors import InputRefused, NotFound, SourceUnavailable
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.arrays import ArrayLayout
from em_pipeline.formats.multiscale import read_multiscale
from em_pipeline.sources.array_source import HeldImage, image_at, survey
from em_pipeline.sources.array_source_container import FolderContainer, StoreContainer, Stored, prefixes
from em_pipeline.sources.region_size import LARGEST_GB, SizeLimit
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import ObjectEndpoints
from em_pipeline_tests.sources.arrays import described

SPEC = DatasetSpec(source="omezarr", accession="x")
LIMIT = SizeLimit("omezarr", LARGEST_GB)


def layout_of(shape: Shape, chunk: Shape, separator: str = "/") -> ArrayLayout:
    (layout,) = read_multiscale(described(shape, chunk, separator), "a")
    return layout


class TestPrefixes:
    """The cheapest way to find the objects of a box."""

    def test_all_of_a_small_array_is_one_listing(self) -> None:
        layout = layout_of(Shape(64, 640, 640), Shape(64, 64, 64))
        assert prefixes(layout, BoundingBox.of_shape(layout.shape)) == ["a/0/"]

    def test_one_chunk_of_a_million_is_asked_for_by_its_key(self) -> None:
        layout = layout_of(Shape(6400, 6400, 6400), Shape(64, 64, 64))
        assert prefixes(layout, BoundingBox.at((0, 0, 0), (64, 64, 64))) is None

    def test_a_slab_of_a_million_is_listed_by_its_rows(self) -> None:
        layout = layout_of(Shape(6400, 6400, 6400), Shape(64, 64, 64))
        below = prefixes(layout, BoundingBox.at((0, 0, 0), (64, 128, 6400)))
        assert below == ["a/0/0/", "a/0/1/"]

    def test_keys_with_dots_have_prefixes_too(self) -> None:
        layout = layout_of(Shape(6400, 6400, 6400), Shape(64, 64, 64), ".")
        assert prefixes(layout, BoundingBox.at((64, 0, 0), (64, 64, 6400))) == ["a/1.0."]

    def test_the_whole_of_the_portals_largest_level_is_eighteen_pages(self) -> None:
        layout = layout_of(Shape(564, 2520, 2596), Shape(64, 64, 64))
        below = prefixes(layout, BoundingBox.of_shape(layout.shape))
        assert below is not None
        assert sum(math.ceil(9 / len(below) * 40 * 41 / 1000) for _ in below) <= 18

    @given(st.data())
    def test_what_is_listed_holds_every_object_of_the_box(self, data: st.DataObject) -> None:
        grid = data.draw(st.tuples(*[st.integers(1, 40)] * 3))
        layout = layout_of(Shape(*grid), Shape(1, 1, 1), data.draw(st.sampled_from("./")))
        spans = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in grid]
        if any(a == b for a, b in spans):
            return
        box = BoundingBox(start=Shape(*(a for a, _ in spans)), stop=Shape(*(b for _, b in spans)))
        below = prefixes(layout, box)
        keys = [key for key, _ in layout.objects(box)]
        if below is not None:
            assert len(below) <= len(keys)
            assert all(any(key.startswith(prefix) for prefix in below) for key in keys)


class Listed:
    """A container that holds every chunk, each of one byte, and counts nothing but what is asked."""

    certain = True

    def __init__(self, shape: Shape, chunk: Shape) -> None:
        self.fetch = described(shape, chunk)

    def url(self, key: str) -> str:
        return f"https://example.org/{key}"

    def document(self, key: str, content: bytes) -> Stored:
        return Stored(key, len(content))

    def stored(self, layout: ArrayLayout, box: BoundingBox) -> Iterator[Stored]:
        return (Stored(key, 1, f'"{key}"') for key, _ in layout.objects(box))

    def names(self, prefix: str) -> tuple[str, ...]:
        return ()


def test_seventeen_thousand_objects_are_listed_once_each() -> None:
    container = Listed(Shape(564, 2520, 2596), Shape(64, 64, 64))
    found = survey([image_at(container, "a", SPEC)], LIMIT)
    assert len(found.files) == 9 * 40 * 41 + 1
    assert len({file.path for file in found.files}) == len(found.files)
    assert found.files[0].path == "image/a/.zarray"


def test_what_is_not_wanted_does_not_change_the_revision() -> None:
    container = Listed(Shape(564, 2520, 2596), Shape(64, 64, 64))
    boxes = [BoundingBox.at((0, 0, 0), (64, 64, 64)), BoundingBox.at((0, 0, 64), (64, 64, 64))]
    revisions = [
        survey([image_at(container, "a", SPEC.model_copy(update={"bounding_box": box}))], LIMIT).revision
        for box in (*boxes, boxes[0])
    ]
    assert revisions[0] != revisions[1]
    assert revisions[0] == revisions[2]


def test_a_folders_unreadable_document_is_not_an_absent_one(tmp_path: Path) -> None:
    container = FolderContainer(tmp_path)
    assert container.fetch("zarr.json") is None
    assert container.fetch("none/zarr.json") is None
    (tmp_path / "zarr.json").mkdir()
    assert container.fetch("zarr.json") is None


@pytest.mark.parametrize("name", ["a", "a b", "ä"])
def test_a_folders_files_have_plain_addresses(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert " " not in FolderContainer(tmp_path).url(name)


def test_a_level_of_exabytes_on_a_server_is_refused_before_it_is_listed() -> None:
    class Server:
        certain = False

        def url(self, key: str) -> str:
            return f"http://127.0.0.1/{key}"

    layout = layout_of(Shape(10**6, 10**6, 10**6), Shape(64, 64, 64))
    image = HeldImage(Server(), layout, BoundingBox.of_shape(layout.shape), "image")  # type: ignore[arg-type]
    with pytest.raises(InputRefused, match=r"GB once decoded.*--roi.*--level"):
        survey([image], LIMIT)


def test_a_bucket_that_is_not_there_is_no_container_without_documents() -> None:
    class Nowhere(Replay):
        def answer(self, request: Request) -> Reply:
            return text("<Error><Code>NoSuchBucket</Code></Error>", "application/xml", 404)

    with Nowhere() as server:
        endpoints = ObjectEndpoints(s3=server.url)
        client = PortalClient(connections=1, retries=0, endpoints=endpoints)
        with client, pytest.raises(NotFound, match="no such bucket"):
            StoreContainer("s3://nowhere/a.zarr", client).fetch(".zattrs")


@pytest.mark.parametrize("body", ["<html>maintenance</html>", '{"half": '])
def test_what_a_store_sends_in_place_of_a_document_is_an_outage(body: str) -> None:
    class Troubled(Replay):
        def answer(self, request: Request) -> Reply:
            return text(body, "application/json")

    with Troubled() as server:
        endpoints = ObjectEndpoints(s3=server.url)
        client = PortalClient(connections=1, retries=0, endpoints=endpoints)
        with client, pytest.raises(SourceUnavailable):
            StoreContainer("s3://bucket/a.zarr", client).fetch(".zattrs")
