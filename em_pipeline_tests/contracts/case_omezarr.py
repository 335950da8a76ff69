"""The OME-Zarr source against an image on a web server, which cannot be listed."""

from em_pipeline.demo.openorganelle_portal import BUCKET, OpenOrganellePortal
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.omezarr import OmeZarrSource
from em_pipeline_tests.contracts.case import ANY_DOCUMENT, SourceCase

IMAGE = "jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/em/fibsem-int16"
LABELS = "jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/labels/inference/segmentations/nuc"


def _spec(portal: OpenOrganellePortal, image: str) -> DatasetSpec:
    base = f"{portal.url}/{BUCKET}"
    return DatasetSpec(
        source="omezarr",
        accession="nacc",
        location=f"{base}/{image}",
        level="s5",
        label_images=(f"nuclei={base}/{LABELS}",),
    )


CASE = SourceCase(
    portal=OpenOrganellePortal,
    make=lambda _: OmeZarrSource(timeout_s=5, retries=0, backoff_s=0),
    spec=lambda portal: _spec(portal, IMAGE),
    shape=(17, 78, 81),
    troubles=ANY_DOCUMENT,
    missing=lambda portal: _spec(portal, "jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-1/em/fibsem-int16"),
    lists=False,
    label_images=("nuclei",),
)
