"""Any OME-Zarr at any address: folders, web servers, object stores."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em_pipeline.demo.openorganelle_portal import BUCKET, OpenOrganellePortal
from em_pipeline.demo.s3_bucket import Bucket
from em_pipeline.domain.errors import InputRefused, NotFound, SourceUnavailable
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.omezarr import OmeZarrSource
from em_pipeline_tests.sources.arrays import Served, held_files

IMAGE = "jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/em/fibsem-int16"
LABELS = "jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/labels/inference/segmentations/nuc"


@pytest.fixture
def organelles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenOrganellePortal]:
    folder = tmp_path_factory.getbasetemp() / "portal-OpenOrganellePortal"
    with OpenOrganellePortal(folder) as portal:
        yield portal


def source_of(**options: str) -> OmeZarrSource:
    return OmeZarrSource(timeout_s=5, retries=0, backoff_s=0, **options)


def spec_of(location: str | None, **more: Any) -> DatasetSpec:
    return DatasetSpec(source="omezarr", accession="x", location=location, **more)


def values_of(source: OmeZarrSource, spec: DatasetSpec) -> dict[str, Any]:
    record = source.fetch_record(spec)
    return DatasetRecord.resolve(spec.dataset_id, record.revision, record.claims).values()


def write_image(folder: Path, channels: int, labels: bool = False) -> None:
    """An OME-Zarr 0.4 image of c, z, y, x whose voxels are ten times their channel."""
    import zarr

    root = zarr.open_group(str(folder), mode="w", zarr_format=2)
    voxels = np.broadcast_to(
        10 * np.arange(1, channels + 1, dtype=np.uint8)[:, None, None, None], (channels, 4, 6, 8)
    )
    root.create_array("0", data=np.ascontiguousarray(voxels), chunks=(1, 4, 6, 8))
    axes = [{"name": "c", "type": "channel"}] + [
        {"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"
    ]
    scale = {"type": "scale", "scale": [1, 30, 6, 6]}
    root.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    ]
    if labels:
        group = root.create_group("labels")
        group.attrs["labels"] = ["cells"]
        cells = group.create_group("cells")
        cells.create_array("0", data=np.full((4, 6, 8), 2**40, np.uint64), chunks=(4, 6, 8))
        cells.attrs["multiscales"] = [
            {
                "version": "0.4",
                "axes": axes[1:],
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [30, 6, 6]}]}
                ],
            }
        ]


class TestAddresses:
    """One image, wherever it lies."""

    def test_on_a_web_server_absent_chunks_are_found_out_by_asking(
        self, organelles: OpenOrganellePortal
    ) -> None:
        spec = spec_of(f"{organelles.url}/{BUCKET}/{IMAGE}", level="s4")
        files = source_of().list_files(spec, source_of().fetch_record(spec))
        chunks = [file for file in files if "/.z" not in file.path]
        assert len(chunks) == 9
        assert all(file.may_be_absent and file.size is None for file in chunks)

    def test_on_a_web_server_what_was_never_written_is_missing(
        self, organelles: OpenOrganellePortal, tmp_path: Path
    ) -> None:
        spec = spec_of(f"{organelles.url}/{BUCKET}/{IMAGE}", level="s4")
        with source_of().open_volume(spec, held_files(source_of(), spec, tmp_path)) as volume:
            assert list(volume.missing) == [BoundingBox.at((0, 128, 128), (35, 29, 34))]

    def test_each_document_is_asked_for_once_per_step(self, organelles: OpenOrganellePortal) -> None:
        source_of().fetch_record(spec_of(f"{organelles.url}/{BUCKET}/{IMAGE}", level="s4"))
        assert max(organelles.requests.values()) == 1

    def test_in_an_object_store_only_what_is_there_is_listed(
        self, organelles: OpenOrganellePortal, tmp_path: Path
    ) -> None:
        source = source_of(s3=organelles.url)
        spec = spec_of(f"s3://{BUCKET}/{IMAGE}", level="s4")
        files = held_files(source, spec, tmp_path)
        assert len([held for held in files if not held.path.name.startswith(".z")]) == 8
        with source.open_volume(spec, files) as volume:
            assert (volume.shape, len(volume.missing)) == ((35, 157, 162), 1)

    def test_a_web_address_of_the_store_is_listed_too(self, organelles: OpenOrganellePortal) -> None:
        source = source_of(s3=organelles.url)
        spec = spec_of(f"{organelles.url}/{BUCKET}/{IMAGE}/", level="s4")
        files = source.list_files(spec, source.fetch_record(spec))
        assert not [file for file in files if file.may_be_absent]

    def test_in_a_folder_files_stay_in_place(self, organelles: OpenOrganellePortal, tmp_path: Path) -> None:
        spec = spec_of(str(organelles.tree / IMAGE), level="s5")
        files = held_files(source_of(), spec, tmp_path)
        assert all(held.file.in_place for held in files)
        with source_of().open_volume(spec, files) as volume:
            assert volume.shape == (17, 78, 81)

    @pytest.mark.parametrize("kind", ["s3", "folder"])
    def test_the_address_of_an_array_is_that_level_of_its_image(
        self, organelles: OpenOrganellePortal, tmp_path: Path, kind: str
    ) -> None:
        base = f"s3://{BUCKET}" if kind == "s3" else str(organelles.tree)
        source, spec = source_of(s3=organelles.url), spec_of(f"{base}/{IMAGE}/s5")
        assert values_of(source, spec)["core.voxel_size_nm.z"] == pytest.approx(94.72)
        with source.open_volume(spec, held_files(source, spec, tmp_path)) as volume:
            assert volume.translation_nm == pytest.approx((45.88, 62, 62))

    def test_a_container_without_an_image_says_what_is_below(self, organelles: OpenOrganellePortal) -> None:
        spec = spec_of(f"s3://{BUCKET}/jrc_mus-nacc-2/jrc_mus-nacc-2.zarr")
        with pytest.raises(NotFound, match=r"looked for zarr\.json.*recon-1/, recon-2/"):
            source_of(s3=organelles.url).fetch_record(spec)

    def test_an_image_by_its_path_inside(self, organelles: OpenOrganellePortal) -> None:
        root, _, path = IMAGE.partition(".zarr/")
        spec = spec_of(f"s3://{BUCKET}/{root}.zarr", image_set=path, level="s6")
        assert values_of(source_of(s3=organelles.url), spec)["core.volume_shape.z"] == 8

    def test_a_folder_with_one_image_inside_needs_no_path(
        self, organelles: OpenOrganellePortal, tmp_path: Path
    ) -> None:
        write_image(tmp_path / "x.zarr" / "deep" / "image", channels=1)
        spec = spec_of(str(tmp_path / "x.zarr"))
        with source_of().open_volume(spec, held_files(source_of(), spec, tmp_path / "raw")) as volume:
            assert volume.shape == (4, 6, 8)

    def test_several_images_inside_are_named(self, organelles: OpenOrganellePortal) -> None:
        spec = spec_of(str(organelles.tree / "jrc_mus-kidney" / "jrc_mus-kidney.n5"))
        with pytest.raises(InputRefused, match=r"there are 2: em/fibsem-uint16, em/fibsem-uint8"):
            source_of().fetch_record(spec)

    def test_a_spec_without_location_is_refused(self) -> None:
        with pytest.raises(InputRefused, match="no location"):
            source_of().fetch_record(spec_of(None))

    def test_an_address_of_another_kind_is_refused(self) -> None:
        with pytest.raises(InputRefused, match="not read"):
            source_of().fetch_record(spec_of("ftp://example.org/x.zarr"))

    def test_a_page_in_place_of_a_document_is_an_outage(self, organelles: OpenOrganellePortal) -> None:
        organelles.replace(f"/{BUCKET}/{IMAGE}/.zattrs", "<html>maintenance</html>")
        with pytest.raises(SourceUnavailable):
            source_of().fetch_record(spec_of(f"{organelles.url}/{BUCKET}/{IMAGE}", level="s4"))


class TestChannelsAndLabels:
    """One channel of several, and the label images beside an image."""

    def test_a_channel_by_its_number(self, tmp_path: Path) -> None:
        write_image(tmp_path / "x.zarr", channels=3)
        spec = spec_of(str(tmp_path / "x.zarr"), image_set=1)
        files = held_files(source_of(), spec, tmp_path / "raw")
        assert [held.path.name for held in files if not held.path.name.startswith(".z")] == ["1.0.0.0"]
        with source_of().open_volume(spec, files) as volume:
            assert np.unique(volume.read(BoundingBox.of_shape(volume.shape))).tolist() == [20]

    def test_label_images_that_the_image_lists(self, tmp_path: Path) -> None:
        write_image(tmp_path / "x.zarr", channels=1, labels=True)
        spec = spec_of(str(tmp_path / "x.zarr"), label_images=("cells",))
        labels = source_of().open_label_images(spec, held_files(source_of(), spec, tmp_path / "raw"))
        assert labels["cells"].read(BoundingBox.at((0, 0, 0), (1, 1, 1))).item() == 2**40

    def test_an_unlisted_label_image_is_not_found(self, tmp_path: Path) -> None:
        write_image(tmp_path / "x.zarr", channels=1, labels=True)
        spec = spec_of(str(tmp_path / "x.zarr"), label_images=("mito",))
        with pytest.raises(NotFound, match="the image lists cells"):
            source_of().fetch_record(spec)

    def test_a_label_image_by_its_address(self, organelles: OpenOrganellePortal, tmp_path: Path) -> None:
        source = source_of(s3=organelles.url)
        label = f"nuclei=s3://{BUCKET}/{LABELS}"
        spec = spec_of(f"s3://{BUCKET}/{IMAGE}", level="s5", label_images=(label,))
        images = source.open_label_images(spec, held_files(source, spec, tmp_path))
        assert images["nuclei"].shape == (17, 78, 81)


def test_a_changed_document_is_another_revision(tmp_path: Path) -> None:
    write_image(tmp_path / "x.zarr", channels=1)
    spec = spec_of(str(tmp_path / "x.zarr"))
    before = source_of().fetch_record(spec).revision
    path = tmp_path / "x.zarr" / ".zattrs"
    attributes = json.loads(path.read_text())
    attributes["multiscales"][0]["name"] = "renamed"
    path.write_text(json.dumps(attributes))
    assert source_of().fetch_record(spec).revision != before


@pytest.mark.integration
def test_a_real_s3_server_lists_and_serves_it(
    organelles: OpenOrganellePortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto's server, written to by botocore and read anonymously."""
    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        url = f"http://127.0.0.1:{port}"
        bucket = boto3.resource("s3", endpoint_url=url, region_name="us-east-1").Bucket("volumes")
        bucket.create()
        everyone = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": "*",
                    "Action": ["s3:GetObject", "s3:ListBucket"],
                    "Resource": ["arn:aws:s3:::volumes", "arn:aws:s3:::volumes/*"],
                }
            ],
        }
        bucket.Policy().put(Policy=json.dumps(everyone))
        folder = organelles.tree / IMAGE
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_relative_to(folder / "s3"):
                bucket.upload_file(str(path), f"a b/{path.relative_to(folder).as_posix()}")
        source, spec = source_of(s3=url), spec_of("s3://volumes/a b", level="s4")
        with source.open_volume(spec, held_files(source, spec, tmp_path)) as volume:
            assert (volume.shape, len(volume.missing)) == ((35, 157, 162), 1)
            assert volume.read(BoundingBox.at((0, 0, 0), (8, 8, 8))).min() > 4000
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["web", "s3", "folder"])
def test_chunks_that_an_old_writer_nested_without_saying_so(
    organelles: OpenOrganellePortal, tmp_path: Path, kind: str
) -> None:
    """zarr-python before 2.8 left `dimension_separator` out."""
    shutil.copytree(organelles.tree / IMAGE, tmp_path / "old" / "image")
    document = tmp_path / "old" / "image" / "s4" / ".zarray"
    said = json.loads(document.read_text())
    del said["dimension_separator"]
    document.write_text(json.dumps(said))
    with Served(Bucket("volumes", tmp_path)) as server:
        addresses = {"web": f"{server.url}/volumes", "s3": "s3://volumes", "folder": str(tmp_path)}
        source = source_of(s3=server.url if kind == "s3" else "")
        spec = spec_of(f"{addresses[kind]}/old/image", level="s4")
        files = source.list_files(spec, source.fetch_record(spec))
        assert any(file.path.endswith("s4/0/2/1") for file in files)


def test_a_level_without_a_single_chunk_is_refused(organelles: OpenOrganellePortal) -> None:
    spec = spec_of(f"s3://{BUCKET}/{IMAGE}", level="s2")
    with pytest.raises(NotFound, match="not one is there"):
        source_of(s3=organelles.url).fetch_record(spec)
