"""What tests of downloads share: policies, patient and less so, and a watcher that keeps what it is told."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from em_pipeline.domain.files import Manifest, RemoteFile
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline.storage.object_urls import ObjectEndpoints

PART = 32_768
PATIENT = DownloadPolicy(
    connections=4,
    connect_timeout_s=20.0,
    read_timeout_s=20.0,
    retries=2,
    backoff_s=0.01,
    longest_wait_s=2.0,
    part_size=PART,
    request_size=PART,
)
# For servers that do fall silent, and longer than a busy machine does.
HASTY = replace(PATIENT, read_timeout_s=1.5)


class Watcher(Silent):
    """Keeps the notes, what is to come, and the sum of what was advanced."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced: list[str] = []
        self.done = self.total = 0
        self.step = self.unit = ""

    def start(self, step: str, total: int, unit: str) -> None:
        self.step, self.total, self.unit = step, total, unit

    def advance(self, step: str, amount: int) -> None:
        self.done += amount
        self.advanced.append(step)

    def note(self, message: str) -> None:
        self.notes.append(message)


def hold(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    policy: DownloadPolicy = PATIENT,
    watcher: Watcher | None = None,
    store: str = "",
) -> Manifest:
    """The manifest of `files` held below `folder`; `store` is the URL that answers for S3 and Google."""
    if store:
        policy = replace(policy, endpoints=ObjectEndpoints(s3=store, gs=store))
    return download(
        files, folder, dataset_id="files-a", revision="r1", policy=policy, progress=watcher or Watcher()
    )


def leftovers(folder: Path) -> list[str]:
    """Names of parts and journals that a download left behind."""
    return [path.name for path in (folder / ".download").iterdir() if path.suffix in (".part", ".journal")]
