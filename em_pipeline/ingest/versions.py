"""Which version of a volume a spec and its raw files make, and where its parts lie."""

from dataclasses import dataclass, field
from typing import NamedTuple

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.files import Manifest
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.storage import keys
from em_pipeline.storage.store import Store
from em_pipeline.volumes.metadata import GROUP, parse, read_documents
from em_pipeline.volumes.plan import WRITER

VOLUME = "volume.ome.zarr"
LEDGER = "ledger.parquet"
RECORD = "record.json"
REPORT = "report.json"
PREVIEW = "preview.png"


def version_of(spec: DatasetSpec, manifest: Manifest) -> str:
    """The version: what the voxels and metadata of the volume depend on, hashed."""
    return short_hash(manifest.revision, spec.canonical_json(), manifest.digest, str(WRITER))


def version_without_voxels(store: Store, spec: DatasetSpec, manifest: Manifest) -> str | None:
    """The version, if no voxels have to be looked at for it.

    A codec that voxels of their type and kind are given without a word makes no other version. Whether the
    spec's is one of those is seen in the volume, staged or published; None where there is none.
    """
    version = version_of(spec, manifest)
    if spec.codec is None or VersionFiles.found(store, spec.dataset_id, version) is not None:
        return version
    unsaid = version_of(spec.without_codec, manifest)
    files = VersionFiles.found(store, spec.dataset_id, unsaid)
    return unsaid if files is not None and _codec_of(files.image()) == spec.codec else None


def _codec_of(image: "ImageFiles") -> str | None:
    """The name of the codec that a volume's chunks are in; None where its documents are damaged."""
    try:
        return parse(read_documents(image.volume)).codec.name
    except (ChunkCorrupt, NotFound):
        return None


class ImageFiles(NamedTuple):
    """One image, the volume's own or a label image, and where its ledger lies: under `name` in `ledgers`."""

    volume: Blobs
    ledgers: Blobs
    name: str


def image_files(store: Store, volume_key: str, ledger_key: str) -> ImageFiles:
    """The image under `volume_key` of the store, whose ledger is under `ledger_key`."""
    folder, _, name = ledger_key.rpartition("/")
    return ImageFiles(store.blobs(volume_key), store.blobs(folder), name)


@dataclass(frozen=True)
class VersionFiles:
    """One version's parts, staged or published, as keys of the store; `volume` is a folder."""

    store: Store = field(compare=False, repr=False)
    volume: str
    ledger: str
    record: str
    report: str
    preview: str

    def image(self, label: str | None = None) -> ImageFiles:
        """The version's image or, with `label`, the label image in that folder below `labels/`."""
        if label is None:
            return image_files(self.store, self.volume, self.ledger)
        return image_files(self.store, self.label(label), self.label_ledger(label))

    def label(self, label: str) -> str:
        return f"{self.volume}/labels/{label}"

    def label_ledger(self, label: str) -> str:
        return f"{self.ledger.removesuffix(LEDGER)}labels.{label}.{LEDGER}"

    @property
    def is_whole(self) -> bool:
        """Whether its ledger is there, written last, and its volume's first document, moved last."""
        return self.store.exists(self.ledger) and self.store.exists(f"{self.volume}/{GROUP}")

    @classmethod
    def staged(cls, store: Store, dataset_id: str, version: str) -> "VersionFiles":
        folder = keys.staging(dataset_id, version)
        return cls(store, *(f"{folder}/{name}" for name in (VOLUME, LEDGER, RECORD, REPORT, PREVIEW)))

    @classmethod
    def published(cls, store: Store, dataset_id: str, version: str) -> "VersionFiles":
        makers = (keys.volume, keys.ledger, keys.record, keys.report, keys.preview)
        return cls(store, *(make(dataset_id, version) for make in makers))

    @classmethod
    def found(cls, store: Store, dataset_id: str, version: str) -> "VersionFiles | None":
        """Where the version's complete volume lies now, published before staged; None where nowhere."""
        for files in (cls.published(store, dataset_id, version), cls.staged(store, dataset_id, version)):
            if files.is_whole:
                return files
        return None
