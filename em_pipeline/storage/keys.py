"""Names of everything in the store, as keys relative to its root.

raw/<dataset>/latest.json                     which revision the newest scrape found
raw/<dataset>/<revision>/record.json          what the portal said
raw/<dataset>/<revision>/manifest.json        the files we hold; written last
raw/<dataset>/<revision>/files/...            the files
staging/<dataset>/<version>/                  a volume being written; never served
volumes/<dataset>/<version>.ome.zarr/         a published volume; immutable
volumes/<dataset>/<version>.ledger.parquet    its ledger
volumes/<dataset>/<version>.report.json       the validation report it passed
volumes/<dataset>/<version>.record.json       its record, as published
volumes/<dataset>/<version>.preview.png       what a person looks at first
volumes/<dataset>/latest.json                 pointer to the published version; swapped atomically
locks/<dataset>.lock                          held by the one process that works on the dataset
"""

from em_pipeline.domain.identity import check_dataset_id, check_revision

LATEST = "latest.json"


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


def report(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.report.json"


def record(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.record.json"


def preview(dataset_id: str, version: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{check_revision(version)}.preview.png"


def pointer(dataset_id: str) -> str:
    return f"volumes/{check_dataset_id(dataset_id)}/{LATEST}"


def lock(dataset_id: str) -> str:
    return f"locks/{check_dataset_id(dataset_id)}.lock"
