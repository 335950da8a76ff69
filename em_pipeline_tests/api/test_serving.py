"""The real client against the real sidecar: what is stored arrives, and damage never becomes voxels."""

import io
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from em_client import ChunkCorrupt, EMClient, NotFound, RequestRefused, ServerUnavailable
from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.storage import keys
from em_pipeline_tests.api.conftest import DATASET, SHAPE, SPARSE, UNPUBLISHED, VERSION
from em_pipeline_tests.api.publishing import Site, publish, write_volume

pytestmark = pytest.mark.integration


def ask(http: httpx.Client, **params: Any) -> httpx.Response:
    return http.get("/api/v1/block", params={"dataset_id": DATASET, "z": 0, "y": 0, "x": 0, **params})


def boxes() -> st.SearchStrategy[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Starts inside the volume, sizes that may reach past its edges."""
    starts = st.tuples(*(st.integers(0, extent - 1) for extent in SHAPE))
    return st.tuples(starts, st.tuples(*(st.integers(1, extent + 40) for extent in SHAPE)))


def flip_a_byte(site: Site, dataset_id: str, level: int) -> None:
    shard = site.shards(dataset_id, VERSION, level)[0]
    payload = bytearray(shard.read_bytes())
    payload[100] ^= 1
    shard.write_bytes(payload)


class TestBlocks:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(box=boxes())
    def test_any_box_is_the_array(self, site: Site, client: EMClient, box: Any) -> None:
        start, size = box
        block = client.get_block(DATASET, *start, size=size)
        expected = site.arrays[DATASET][tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        np.testing.assert_array_equal(block.data, expected)
        assert block.data.dtype == np.uint16
        assert block.data.shape == tuple(s.stop - s.start for s in block.box)

    def test_the_default_is_one_chunk(self, site: Site, client: EMClient) -> None:
        block = client.get_block(DATASET, 0, 0, 0)
        np.testing.assert_array_equal(block, site.arrays[DATASET][:128, :128, :128])
        assert block.states == {"data": 1}
        assert block.voxel_size_nm == (40.0, 8.25, 8.25)
        assert block.version == VERSION

    def test_coarser_levels_have_their_own_voxels(self, client: EMClient) -> None:
        level = client.metadata(DATASET).levels[1]
        block = client.get_block(DATASET, 0, 0, 0, level=1, size=level.shape)
        assert block.data.shape == level.shape
        assert block.voxel_size_nm == level.voxel_size_nm == (40.0, 16.5, 16.5)

    def test_states_tell_fill_from_data(self, site: Site, client: EMClient) -> None:
        block = client.get_block(SPARSE, 0, 0, 0, size=(20, 30, 140))
        np.testing.assert_array_equal(block, site.arrays[SPARSE])
        assert block.states == {"fill": 1, "padded": 1}

    def test_one_voxel_at_the_far_corner(self, site: Site, client: EMClient) -> None:
        block = client.get_block(DATASET, *(n - 1 for n in SHAPE))
        assert block.data.item() == site.arrays[DATASET][-1, -1, -1]

    def test_concurrent_requests(self, site: Site, client: EMClient) -> None:
        def read(z: int) -> bool:
            block = client.get_block(DATASET, z, 0, 0, size=(1, 140, 260))
            return np.array_equal(block.data[0], site.arrays[DATASET][z])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(0, 150, 5)))

    def test_npy(self, site: Site, http: httpx.Client) -> None:
        answer = ask(http, format="npy", size="3,4,5")
        array = np.load(io.BytesIO(answer.content), allow_pickle=False)
        np.testing.assert_array_equal(array, site.arrays[DATASET][:3, :4, :5])

    def test_png_is_the_middle_plane(self, site: Site, http: httpx.Client) -> None:
        answer = ask(http, format="png", size="11,20,30")
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-em-box"] == "5:6,0:20,0:30"
        with Image.open(io.BytesIO(answer.content)) as image:
            grey = np.asarray(image)
        plane = site.arrays[DATASET][5, :20, :30]
        assert grey.shape == plane.shape
        assert np.corrcoef(grey.ravel(), plane.ravel())[0, 1] > 0.99

    def test_headers_describe_the_body(self, http: httpx.Client) -> None:
        answer = ask(http, z=140, size="20,2,3")
        headers = answer.headers
        assert headers["x-em-shape"] == "10,2,3"
        assert headers["x-em-dtype"] == "uint16"
        assert headers["x-em-box"] == "140:150,0:2,0:3"
        assert headers["x-em-level"] == "0"
        assert headers["x-em-version"] == VERSION
        assert headers["x-em-voxel-size-nm"] == "40.0,8.25,8.25"
        assert headers["x-em-valid-fraction"] == "1.0"
        assert headers["x-em-states"] == "padded=1"
        assert headers["content-length"] == str(10 * 2 * 3 * 2)
        assert int(headers["x-em-crc32"], 16) == zlib.crc32(answer.content)


class TestCaching:
    def test_a_right_copy_is_not_sent_again(self, http: httpx.Client) -> None:
        etag = ask(http).headers["etag"]
        again = http.get(
            "/api/v1/block",
            params={"dataset_id": DATASET, "z": 0, "y": 0, "x": 0},
            headers={"If-None-Match": f'"other", W/{etag}'},
        )
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)

    def test_tags_differ_by_all_that_decides_the_bytes(self, http: httpx.Client) -> None:
        small = {"size": "8,8,8"}
        others = [{"z": 1}, {"size": "8,8,9"}, {"format": "npy"}, {"level": 1}, {"dataset_id": SPARSE}]
        answers = [ask(http, **small), *(ask(http, **{**small, **other}) for other in others)]
        assert len({answer.headers["etag"] for answer in answers}) == len(answers)

    def test_only_a_pinned_version_is_immutable(self, http: httpx.Client) -> None:
        assert ask(http).headers["cache-control"] == "no-cache"
        assert "immutable" in ask(http, version=VERSION).headers["cache-control"]

    def test_a_new_version_is_served_at_once(self, site: Site, client: EMClient) -> None:
        before = client.get_block(SPARSE, 0, 0, 0)
        array = site.arrays[SPARSE] // 2
        write_volume(site.store, SPARSE, "version-two", array, voxel_size=(1.0, 1.0, 1.0))
        publish(site.catalog, site.store, SPARSE, "version-two")
        after = client.get_block(SPARSE, 0, 0, 0, size=(20, 30, 140))
        np.testing.assert_array_equal(after, array)
        assert (before.version, after.version) == (VERSION, "version-two")
        with pytest.raises(NotFound, match="version-two"):
            client.get_block(SPARSE, 0, 0, 0, version=VERSION)


class TestDamage:
    def test_a_flipped_byte_names_its_chunk(self, site: Site, client: EMClient) -> None:
        flip_a_byte(site, DATASET, 0)
        with pytest.raises(ChunkCorrupt, match=r"chunk \(0, 0, 0\) of level 0"):
            client.get_block(DATASET, 0, 0, 0)
        whole = client.get_block(DATASET, 0, 0, 128)
        np.testing.assert_array_equal(whole, site.arrays[DATASET][:128, :128, 128:256])

    @pytest.mark.parametrize("kept", [0, 4096])
    def test_a_truncated_shard(self, site: Site, client: EMClient, kept: int) -> None:
        shard = site.shards(DATASET, VERSION, 0)[0]
        shard.write_bytes(shard.read_bytes()[:kept])
        with pytest.raises(ChunkCorrupt):
            client.get_block(DATASET, 0, 0, 0)

    def test_a_missing_shard_is_never_zeros(self, site: Site, client: EMClient) -> None:
        site.shards(DATASET, VERSION, 0)[0].unlink()
        with pytest.raises(ChunkCorrupt):
            client.get_block(DATASET, 0, 0, 0)

    @pytest.mark.parametrize("what", ["volume", "ledger"])
    def test_a_published_volume_that_is_gone_is_damage(self, site: Site, client: EMClient, what: str) -> None:
        path = site.store.local_path(getattr(keys, what)(DATASET, VERSION))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ChunkCorrupt):
            client.get_block(DATASET, 0, 0, 0)

    def test_a_ledger_that_was_not_published(self, site: Site, client: EMClient) -> None:
        write_volume(
            site.store, "files-other", VERSION, site.arrays[DATASET] // 2, voxel_size=(40, 8.25, 8.25)
        )
        for key in (keys.volume, keys.ledger):
            target = site.store.local_path(key(DATASET, VERSION))
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            site.store.local_path(key("files-other", VERSION)).rename(target)
        with pytest.raises(ChunkCorrupt, match=rf"was published.*`em verify {DATASET} --discard`"):
            client.get_block(DATASET, 0, 0, 0)

    def test_a_mended_volume_is_served_again(self, site: Site, client: EMClient) -> None:
        ledger = site.store.local_path(keys.ledger(DATASET, VERSION))
        ledger.rename(ledger.with_suffix(".away"))
        with pytest.raises(ChunkCorrupt):
            client.get_block(DATASET, 0, 0, 0)
        ledger.with_suffix(".away").rename(ledger)
        assert client.get_block(DATASET, 0, 0, 0).states == {"data": 1}


class TestListing:
    def test_only_what_is_published(self, client: EMClient) -> None:
        found = client.list_datasets()
        assert [dataset.dataset_id for dataset in found] == [DATASET, SPARSE]
        first = found[0]
        assert (first.shape, first.dtype, first.voxel_size_nm) == (SHAPE, "uint16", (40.0, 8.25, 8.25))
        assert (first.source, first.version, first.licence) == ("files", VERSION, "CC0-1.0")

    def test_pages(self, http: httpx.Client) -> None:
        first = http.get("/api/v1/datasets", params={"limit": 1}).json()
        assert ([entry["dataset_id"] for entry in first["datasets"]], first["next"]) == ([DATASET], DATASET)
        last = http.get("/api/v1/datasets", params={"limit": 1, "after": first["next"]}).json()
        assert ([entry["dataset_id"] for entry in last["datasets"]], last["next"]) == ([SPARSE], None)

    def test_filters(self, client: EMClient) -> None:
        assert len(client.list_datasets(organism="MUS musculus", source="files")) == 2
        assert client.list_datasets(source="empiar") == []
        assert client.list_datasets(organism="Homo sapiens") == []

    def test_metadata(self, client: EMClient) -> None:
        metadata = client.metadata(DATASET)
        organism = metadata.fields["sample.organism"]
        assert organism.value == "Mus musculus"
        assert organism.evidence is not None
        assert (organism.evidence.origin, organism.evidence.where) == ("portal", "entry.json")
        assert "Rattus norvegicus" in metadata.conflicts[0]
        assert (metadata.shape, metadata.dtype, metadata.version) == (SHAPE, "uint16", VERSION)
        assert [check.name for check in metadata.checks] == ["readable"]
        assert metadata.levels[1].translation_nm == (0.0, 4.125, 4.125)
        assert metadata.statistics["max"] == 65535

    def test_an_unpublished_dataset_is_nowhere(self, client: EMClient) -> None:
        for read in (lambda: client.metadata(UNPUBLISHED), lambda: client.get_block(UNPUBLISHED, 0, 0, 0)):
            with pytest.raises(NotFound, match="no such published dataset"):
                read()

    def test_the_nearest_ids_are_published_ones(self, client: EMClient) -> None:
        with pytest.raises(NotFound) as caught:
            client.metadata("files-nois")
        assert DATASET in caught.value.to_do
        assert UNPUBLISHED not in caught.value.to_do


class TestHealth:
    def test_it_is_well(self, client: EMClient) -> None:
        assert client.health().status == "ok"


def test_a_block_larger_than_an_answer_is_refused(client: EMClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("em_pipeline.api.routes.blocks.LARGEST_BLOCK", 1000)
    with pytest.raises(RequestRefused, match="at most 1000") as caught:
        client.get_block(DATASET, 0, 0, 0)
    assert (caught.value.status, caught.value.slug) == (413, "block-too-large")
    assert client.get_block(DATASET, 0, 0, 0, size=(5, 10, 10)).data.nbytes == 1000


def test_a_database_that_is_gone_is_an_outage(site: Site, client: EMClient) -> None:
    site.catalog.engine.dispose()
    site.catalog.engine = create_engine_for("postgresql://em:secret@127.0.0.1:1/em")
    for read in (client.health, client.list_datasets, lambda: client.get_block(DATASET, 0, 0, 0)):
        with pytest.raises(ServerUnavailable, match="PostgreSQL") as caught:
            read()
        assert "secret" not in str(caught.value)


def test_a_database_of_another_schema_is_not_healthy(site: Site, client: EMClient) -> None:
    with site.catalog.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'future'"))
    with pytest.raises(ServerUnavailable, match="update em-pipeline") as caught:
        client.health()
    assert caught.value.slug == "schema-mismatch"
