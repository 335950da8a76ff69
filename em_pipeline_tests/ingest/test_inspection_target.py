"""A dataset of any portal can be inspected by its id, before a byte of it is ingested."""

from pathlib import Path

import pytest

from em_pipeline.cli.inspect import of_record, print_evidence
from em_pipeline.domain.errors import NotFound, SourceUnavailable
from em_pipeline.ingest.inspection import MOST_BYTES, MOST_REQUESTS, inspect
from em_pipeline.ingest.inspection_target import Whereabouts, address_of, portal_address, stated_size
from em_pipeline.settings import Settings
from em_pipeline.storage.transport import HttpPolicy
from em_pipeline_tests.contracts.cases import CASES
from em_pipeline_tests.formats.sparse_tiff import itk

PATIENCE = HttpPolicy(connections=1, read_timeout_s=5.0, retries=0)


@pytest.mark.parametrize("slug", CASES)
def test_what_the_portal_points_to_is_the_datasets_volume(slug: str, tmp_path: Path) -> None:
    case = CASES[slug]
    with case.portal(tmp_path) as portal:
        spec = case.spec(portal)
        address, note, _ = portal_address(case.make(portal), spec)
        found = inspect(address, PATIENCE, lambda _: None)
    assert spec.dataset_id in note
    assert found.requests <= MOST_REQUESTS
    assert found.bytes_read <= MOST_BYTES
    shapes = [image.shape for image in found.images]
    # Of a dataset of many files, the first one is looked at.
    assert case.shape in shapes or (shapes == [(1, *case.shape[1:])] and "first of the" in note)


@pytest.mark.parametrize("slug", [slug for slug in CASES if slug != "files"])
def test_an_outage_of_the_portal_is_one(slug: str, tmp_path: Path) -> None:
    case = CASES[slug]
    with case.portal(tmp_path) as portal:
        source, spec = case.make(portal), case.spec(portal)
    with pytest.raises(SourceUnavailable):
        portal_address(source, spec)


def test_paths_and_urls_are_themselves(tmp_path: Path) -> None:
    for target in (str(tmp_path), "https://host/a.tif", "s3://bucket/a.zarr"):
        assert address_of(target, Settings()) == Whereabouts(target)


def test_a_known_location_is_its_address(tmp_path: Path, database_url: str) -> None:
    from em_pipeline.ingest.workspace import open_catalog
    from em_pipeline.sources.files import spec_for

    (tmp_path / "a.tif").touch()
    settings = Settings(database_url=database_url)
    with open_catalog(settings) as catalog:
        catalog.save_spec(spec_for(tmp_path / "a.tif", name="mine"))
    assert address_of("files-mine", settings)[0] == str(tmp_path / "a.tif")
    with pytest.raises(NotFound, match="files-mine"):
        address_of("files-mien", settings)


def test_a_known_part_is_found_by_its_id_and_anything_else_without_a_catalogue(
    tmp_path: Path, database_url: str
) -> None:
    from em_pipeline.ingest.workspace import open_catalog

    case = CASES["openorganelle"]
    with case.portal(tmp_path) as portal:
        whole = case.spec(portal)
        part = whole.model_copy(update={"dataset_id": f"{whole.dataset_id}-s4"})
        settings = Settings(database_url=database_url, sources={"openorganelle": portal.options})
        with open_catalog(settings) as catalog:
            catalog.save_spec(part)
        assert part.dataset_id in address_of(part.dataset_id, settings)[1]
        nowhere = settings.model_copy(update={"database_url": "postgresql://em@127.0.0.1:1/em"})
        assert whole.accession in address_of("OpenOrganelle-jrc_mus-nacc-2", nowhere)[0]


def test_a_voxel_size_that_the_dataset_states_is_not_said_to_be_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES["epfl"]
    nowhere = "postgresql://em@127.0.0.1:1/em"
    with case.portal(tmp_path) as portal:
        settings = Settings(database_url=nowhere, sources={"epfl": portal.options})
        stated = stated_size(address_of("epfl-volumedata", settings).claims)
    assert {axis: claim.value for axis, claim in stated.items()} == {"z": 5, "y": 5, "x": 5}
    itk(tmp_path / "a.tif")
    (image,) = inspect(str(tmp_path / "a.tif"), PATIENCE, lambda _: None).images
    print_evidence(image, stated)
    assert "nothing says" not in capsys.readouterr().out
    print_evidence(image, {axis: stated[axis] for axis in "yx"})
    assert "nothing says the voxel size along z:" in capsys.readouterr().out
    (note,) = of_record(stated)
    assert note.startswith("its dataset's voxels are 5×5×5 nm (z, y, x), says ")
