"""Names of everything in the store, as keys relative to its root.

raw/<dataset>/latest.json                     which revision the newest scrape found
raw/<dataset>/<revision>/record.json          what the portal said
raw/<dataset>/<revision>/manifest.json        the files we hold; written last
raw/<dataset>/<revision>/files/...            the files
raw/<dataset>/<revision>/uploads.json         in an object store: which object is which file
staging/<dataset>/<version>/                  a volume being written; never served
volumes/<dataset>/<version>.ome.zarr/         a published volume; immutable
volumes/<dataset>/<version>.ome.zarr/labels/<label>/    a label image of it
volumes/<dataset>/<version>.ledger.parquet    its ledger
volumes/<dataset>/<version>.labels.<label>.ledger.parquet    the label image's
volumes/<dataset>/<version>.report.json       the validation report it passed
volumes/<dataset>/<version>.record.json       its record, as published
volumes/<dataset>/<version>.preview.png       what a person looks at first
volumes/<dataset>/latest.json                 pointer to the published version; swapped atomically
collection/comparison.csv, .html              the published datasets side by side
locks/<dataset>.lock                          held by the one process that works on the dataset
"""

import re
from collections.abc import Sequence

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.identity import check_dataset_id, check_revision

LATEST = "latest.json"
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def raw_pointer(dataset_id: str) -> str:
    return f"raw/{check_dataset_id(dataset_id)}/{LATEST}"


def raw_folder(dataset_id: str, revision: str) -> str:
    return f"raw/{check_dataset_id(dataset_id)}/{check_revision(revision)}"


def portal_record(dataset_id: str, revision: str) -> str:
    return f"{raw_folder(dataset_id, revision)}/record.json"


def manifest(dataset_id: str, revision: str) -> str:
    return f"{raw_folder(dataset_id, revision)}/manifest.json"


def raw_files(dataset_id: str, revision: str) -> str:
    return f"{raw_folder(dataset_id, revision)}/files"


def staging(dataset_id: str, version: str) -> str:
    return f"staging/{check_dataset_id(dataset_id)}/{check_revision(version)}"


def volume(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.ome.zarr"


def ledger(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.ledger.parquet"


def label_folders(names: Sequence[str]) -> dict[str, str]:
    """The folder of each label image below `labels/`: its name, all but `[A-Za-z0-9._-]` made `-`.

    Raises `InputRefused` where nothing usable remains of a name, and where two would share a folder on a
    disk that does not tell capital letters from small ones.
    """
    folders = {name: re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") for name in names}
    taken: dict[str, str] = {}
    for name, folder in folders.items():
        if not LABEL.fullmatch(folder) or ".." in folder or folder.lower() == "zarr.json":
            raise InputRefused(
                f"Keep the label image {name!r} in a folder",
                "too little of its name, or too much, can be the name of a folder",
                "Leave it out of the spec's label_images, and tell us of it",
            )
        if (other := taken.setdefault(folder.lower(), name)) != name:
            raise InputRefused(
                f"Keep the label images {other!r} and {name!r}",
                f"both would lie in labels/{folder}",
                "Take one of them as a dataset of its own",
            )
    return folders


def report(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.report.json"


def record(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.record.json"


def preview(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.preview.png"


def pointer(dataset_id: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{LATEST}"


def all_of(root: str, dataset_id: str) -> str:
    """Everything of the dataset below `root`: raw, staging or volumes."""
    return f"{root}/{check_dataset_id(dataset_id)}"


def comparison(suffix: str) -> str:
    return f"collection/comparison.{suffix}"


def lock(dataset_id: str) -> str:
    return f"locks/{check_dataset_id(dataset_id)}.lock"
