"""Grey values from a DVID server, as raw boxes: what it says of them, and the files that hold a part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.domain.errors import InputRefused, RecordInvalid
from em_pipeline.domain.evidence import Claim, Origin
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.base import ClaimSheet
from em_pipeline.formats.dvid import EXTRACTOR, INFO_NAME, DvidInstance, open_dvid, parse_instance
from em_pipeline.sources.base import HeldFile
from em_pipeline.sources.documents import fetch_json
from em_pipeline.sources.precomputed_store import IMAGE, Region, box_in
from em_pipeline.storage.http import PortalClient


@dataclass(frozen=True)
class DvidImage:
    """The instance at `url` (`<server>/api/node/<uuid>/<instance>`), and the `box` of it that is wanted.

    `box` is in voxels z-y-x from the instance's first. `text` is the `info` document. DVID has one level.
    """

    url: str
    client: PortalClient
    text: str
    instance: DvidInstance
    box: BoundingBox
    place: str = IMAGE
    finest: bool = True

    def __str__(self) -> str:
        return f"DVID's instance of {'×'.join(map(str, self.instance.shape))} voxels"

    @property
    def bytes(self) -> int:
        return self.box.shape.voxels * self.instance.dtype.itemsize

    @property
    def region(self) -> Region:
        return _region(self.instance, self.box)

    def claims(self) -> list[Claim]:
        """What the instance says, as the portal's word."""
        return _claims(self.instance, f"{self.url}/info")

    def files(self) -> Iterator[RemoteFile]:
        """`info` and the raw boxes, whose sizes follow from their shapes."""
        size = self.client.head(f"{self.url}/info").size
        yield RemoteFile(url=f"{self.url}/info", path=f"{self.place}/{INFO_NAME}", size=size)
        grid, itemsize = self.instance.grid, self.instance.dtype.itemsize
        for box in grid.boxes(self.box):
            yield RemoteFile(
                url=f"{self.url}/{self.instance.raw_path(box)}", path=f"{self.place}/{grid.name(box)}",
                size=box.shape.voxels * itemsize,
            )  # fmt: skip


def image_at(url: str, client: PortalClient, spec: DatasetSpec) -> DvidImage:
    """The instance at `url`. Raises `InputRefused` for a coarser level and a box outside, and like
    `parse_instance`."""
    if spec.level not in (None, 0, "0"):
        raise InputRefused(
            f"Take level {spec.level!r} of {spec.dataset_id} from DVID",
            "its raw voxels are those of the finest level only",
            "Leave --image-set or --level (`image_set`, `level` in the spec) out",
        )
    text = fetch_json(client, f"{url}/info").text
    instance = parse_instance(text, f"{url}/info")
    return DvidImage(url, client, text, instance, box_in(spec, instance.shape, "DVID's instance"))


def open_image(spec: DatasetSpec, root: Path) -> LazyVolume:
    """The whole instance, of which the folder holds the spec's box."""
    return open_dvid(root, box=spec.bounding_box)


def held_region(spec: DatasetSpec, root: Path) -> Region:
    """Where the spec's box of the instance lies."""
    instance = parse_instance((root / INFO_NAME).read_bytes(), INFO_NAME)
    return _region(instance, box_in(spec, instance.shape, "DVID's instance"))


def root_of(files: Sequence[HeldFile]) -> Path | None:
    """The folder of an instance among raw files; None where they hold another image."""
    return next((held.path.parent for held in files if held.file.path == f"{IMAGE}/{INFO_NAME}"), None)


def sized_claims(instance: DvidInstance, url: str) -> list[Claim]:
    """Size, voxel size and data type only: how another product is stored says nothing of the image."""
    kept = ("core.volume_shape.", "core.voxel_size_nm.", "core.data_type")
    return [claim for claim in _claims(instance, url) if claim.field.startswith(kept)]


def _claims(instance: DvidInstance, url: str) -> list[Claim]:
    claims = instance.claims(ClaimSheet(Path(INFO_NAME), EXTRACTOR))
    return [claim.told_by(Origin.PORTAL, url) for claim in claims]


def _region(instance: DvidInstance, box: BoundingBox) -> Region:
    z, y, x = instance.voxel_nm
    if z is None or y is None or x is None:
        raise RecordInvalid(
            "Place DVID's instance", f"its voxels are {instance.voxel_nm} nm", "Take another image set"
        )
    return Region((z, y, x), instance.first, box)
