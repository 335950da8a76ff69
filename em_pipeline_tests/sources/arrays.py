"""What tests of array sources share: downloading a dataset's files, and containers to describe."""

import json
from pathlib import Path
from typing import Any

from em_pipeline.demo.replay import Replay, Reply, Request
from em_pipeline.demo.s3_bucket import Bucket
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.arrays import Fetch
from em_pipeline.sources.base import HeldFile, Source
from em_pipeline.storage.download import DownloadPolicy, download
from em_pipeline.storage.local_files import path_of_file_url


def held_files(source: Source, spec: DatasetSpec, folder: Path) -> list[HeldFile]:
    """The dataset's raw files, downloaded below `folder` or in place."""
    record = source.fetch_record(spec)
    manifest = download(
        source.list_files(spec, record),
        folder,
        dataset_id=spec.dataset_id,
        revision=record.revision,
        policy=DownloadPolicy(connections=8, retries=0),
        progress=Silent(),
    )
    return [
        HeldFile(file, path_of_file_url(file.url) if file.in_place else folder / file.path)
        for file in manifest.files
    ]


def described(shape: tuple[int, ...], chunk: tuple[int, ...], separator: str = "/") -> Fetch:
    """A zarr v2 array `a` of that shape, whose chunks nobody ever asks for."""
    document: dict[str, Any] = {
        "zarr_format": 2, "shape": shape, "chunks": chunk, "dtype": "<u2", "compressor": None,
        "filters": None, "fill_value": 0, "order": "C", "dimension_separator": separator,
    }  # fmt: skip
    return {"a/.zarray": json.dumps(document).encode()}.get


class Served(Replay):
    """A bucket and nothing else."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.bucket = bucket

    def answer(self, request: Request) -> Reply:
        return self.bucket.answer(request)
