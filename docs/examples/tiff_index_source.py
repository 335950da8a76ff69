"""A source for a portal that publishes one JSON index of its volumes, each a folder of TIFF sections.

The index, at `<base>/volumes.json`:

    {"volumes": [{"id": "cortex-7", "title": "…", "updated": "2025-06-20", "voxel_size_nm": [40, 6, 6],
                  "licence": "CC-BY-4.0", "folder": "data/cortex-7/", "files": ["section 001.tif"]}]}
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from em_pipeline.domain.errors import NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.documents import JsonDocument, fetch_json
from em_pipeline.sources.levels import refuse_levels
from em_pipeline.storage.http import PortalClient


class TiffIndexSource:
    """The portal at `base`."""

    slug = "tiffindex"
    institution = "example"
    licence_policy = "Each volume states its own licence."
    max_connections = 4
    requests_per_second: float | None = None

    def __init__(self, *, base: str = "https://volumes.example.org", retries: int | str = 4) -> None:
        self._base = base.rstrip("/")
        self._retries = int(retries)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:
        for volume in self._volumes(self._index()):
            released = date.fromisoformat(volume["updated"])
            if since is None or released >= since:
                yield DatasetRef(volume["id"], volume["updated"], released, volume["title"])

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        refuse_levels(spec, "a volume is TIFF sections")
        index = self._index()
        found = [volume for volume in self._volumes(index) if volume["id"] == spec.accession]
        if not found:
            raise NotFound(f"Find {spec.accession} in {index.url}", "it is not listed", "Check the id")
        volume = found[0]
        claimant = Claimant(index.url, "tiff_index_source")
        claims = [
            claimant.says("core.title", volume["title"], "title", volume["title"]),
            claimant.says("rights.licence", volume["licence"], "licence", volume["licence"]),
        ]
        for axis, size in zip("zyx", volume["voxel_size_nm"], strict=True):
            claims.append(claimant.says(f"core.voxel_size_nm.{axis}", size, "voxel_size_nm", size))
        return PortalRecord(
            revision=f"{volume['updated']}-{short_hash(repr(volume))}",
            claims=tuple(claims),
            documents={"volumes.json": index.text},
            facts={"folder": volume["folder"], "files": volume["files"]},
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        globs = spec.include or ("*",)
        names = [n for n in record.facts["files"] if any(fnmatchcase(n, glob) for glob in globs)]
        with self._client() as client:
            return [self._file(client, record.facts["folder"], name) for name in names]

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        return open_volume([held.path for held in files], name=spec.dataset_id)

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        return {}

    def _client(self) -> PortalClient:
        return PortalClient(connections=self.max_connections, retries=self._retries)

    def _index(self) -> JsonDocument:
        with self._client() as client:
            return fetch_json(client, f"{self._base}/volumes.json")

    def _volumes(self, index: JsonDocument) -> list[dict[str, Any]]:
        try:
            volumes: list[dict[str, Any]] = list(index.value["volumes"])
        except (KeyError, TypeError) as error:
            raise RecordInvalid(f"Read {index.url}", "it has no list `volumes`", "See its text") from error
        if not volumes:  # an empty index is a portal in trouble, not a portal without data
            raise SourceUnavailable(f"Read {index.url}", "it lists no volume at all", "Try again later")
        return volumes

    def _file(self, client: PortalClient, folder: str, name: str) -> RemoteFile:
        url = f"{self._base}/{folder}{quote(name)}"
        head = client.head(url)
        return RemoteFile(url=url, path=name, size=head.size, etag=head.etag, modified=head.modified)
