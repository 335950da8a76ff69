"""Which version of a volume a spec and its raw files make, and where its parts lie."""

from dataclasses import dataclass
from pathlib import Path

from em_pipeline.domain.files import Manifest
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.storage import keys
from em_pipeline.storage.store import Store
from em_pipeline.volumes.plan import WRITER

VOLUME = "volume.ome.zarr"
LEDGER = "ledger.parquet"
RECORD = "record.json"
REPORT = "report.json"
PREVIEW = "preview.png"


def version_of(spec: DatasetSpec, manifest: Manifest) -> str:
    """The version: what the voxels and metadata of the volume depend on, hashed."""
    return short_hash(manifest.revision, spec.canonical_json(), manifest.digest, str(WRITER))


@dataclass(frozen=True)
class ImageFiles:
    """Paths of one image, the volume's own or a label image, and of its ledger."""

    volume: Path
    ledger: Path


@dataclass(frozen=True)
class VersionFiles:
    """Paths of one version's parts, staged or published."""

    volume: Path
    ledger: Path
    record: Path
    report: Path
    preview: Path

    def image(self, label: str | None = None) -> ImageFiles:
        """The version's image or, with `label`, the label image in that folder below `labels/`."""
        if label is None:
            return ImageFiles(self.volume, self.ledger)
        beside = self.ledger.name.removesuffix(LEDGER)
        return ImageFiles(
            self.volume / "labels" / label, self.ledger.with_name(f"{beside}labels.{label}.{LEDGER}")
        )

    @classmethod
    def staged(cls, store: Store, dataset_id: str, version: str) -> "VersionFiles":
        folder = store.local_path(keys.staging(dataset_id, version))
        return cls(*(folder / name for name in (VOLUME, LEDGER, RECORD, REPORT, PREVIEW)))

    @classmethod
    def published(cls, store: Store, dataset_id: str, version: str) -> "VersionFiles":
        makers = (keys.volume, keys.ledger, keys.record, keys.report, keys.preview)
        return cls(*(store.local_path(make(dataset_id, version)) for make in makers))

    @classmethod
    def found(cls, store: Store, dataset_id: str, version: str) -> "VersionFiles | None":
        """Where the version's complete volume lies now, published before staged; None where nowhere."""
        for files in (cls.published(store, dataset_id, version), cls.staged(store, dataset_id, version)):
            if files.ledger.exists() and files.volume.exists():
                return files
        return None
