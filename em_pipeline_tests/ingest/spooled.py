"""Raw files in a bucket, and a volume over their copies in the spool of this machine."""

import hashlib
from pathlib import Path

from em_pipeline.domain.files import Manifest, RawFile
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.ingest.spooled_volume import Spooled, SpooledVolume
from em_pipeline.storage.object_blobs import ObjectBlobs
from em_pipeline.storage.spool import spooled_in

DATASET, REVISION = "test-1", "revision-1"


def spool_folder(spool: Path) -> Path:
    """Where the raw files belong in a spool."""
    folder = spooled_in(spool, DATASET, REVISION)
    folder.mkdir(parents=True)
    return folder


def uploaded(volume: LazyVolume, folder: Path, place: ObjectBlobs) -> SpooledVolume:
    """`volume` over the files below `folder`, which lie in `place` as well now."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, payload = path.relative_to(folder).as_posix(), path.read_bytes()
        digest = hashlib.sha256(payload).hexdigest()
        files.append(RawFile(url=f"https://h/{name}", path=name, size=len(payload), sha256=digest))
        place.write(f"files/{name}", payload)
    manifest = Manifest(dataset_id=DATASET, revision=REVISION, files=tuple(files))
    place.write("manifest.json", manifest.model_dump_json().encode())
    spooled = Spooled(folder, DATASET, REVISION, place.below("files"), place)
    return SpooledVolume(volume, spooled, volume.scratch_bytes)
