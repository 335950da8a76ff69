"""Requests to an object store, their prices, and those that a rechunk makes besides its units'."""

import math
from dataclasses import dataclass, fields
from typing import Final, Self

from em_pipeline.volumes.plan import RechunkPlan

LIST_KEYS: Final = 1000
"""Keys in one page of a listing, or deleted at once (S3 API Reference, ListObjectsV2 and DeleteObjects)."""
DOCUMENTS: Final = 3
"""Written once per volume besides one document per level: the group's, the ledger, the pointer."""


@dataclass(frozen=True)
class Prices:
    """US dollars. The defaults are list prices of AWS us-east-1 for Linux on demand and S3 Standard.

    `machine_hour` is 16 vCPU of m7g: 8 × $0.0816 (June 2026,
    https://www.factualminds.com/blog/amazon-ec2-on-demand-pricing-instance-families-2026/). Requests and
    storage are as on https://aws.amazon.com/s3/pricing/ and as quoted in 2026: PUT, COPY, POST and LIST per
    thousand, every request of a multipart upload among them; GET per thousand; a gigabyte for a month. DELETE
    is free, and so is traffic between machines and buckets of one region; `egress_gb` is for a source that
    charges for it. Prices change: give your own.
    """

    machine_hour: float = 0.6528
    put_thousand: float = 0.005
    get_thousand: float = 0.0004
    storage_gb_month: float = 0.023
    egress_gb: float = 0.0


@dataclass(frozen=True)
class Requests:
    """Requests of one kind each. `part` are PUTs of parts; `upload` those that begin and complete uploads.

    A `delete` removes up to `LIST_KEYS` objects, a `list` names as many, or uploads that were not completed.
    """

    get: int = 0
    put: int = 0
    upload: int = 0
    part: int = 0
    copy: int = 0
    list: int = 0
    delete: int = 0

    def __add__(self, other: Self) -> "Requests":
        return Requests(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def dollars(self, prices: Prices) -> float:
        written = self.put + self.upload + self.part + self.copy + self.list
        return (written * prices.put_thousand + self.get * prices.get_thousand) / 1000


def frame_requests(plan: RechunkPlan) -> Requests:
    """To begin the work, read records, write and read documents, and remove scratch and records."""
    records = sum(level.unit_count for level in plan.levels)
    documents = len(plan.levels) + DOCUMENTS
    # Where work begins; records, those of scratch also by its reader; all documents but the pointer.
    read = 1 + records + sum(level.unit_count for level in plan.levels[:-1]) + documents - 1
    # Whether work was begun, what there is of it, and before and after which uploads were not completed.
    total = Requests(get=read, put=1 + documents, list=2 + 2)
    for blobs in (*(level.unit_count for level in plan.levels[:-1]), records + 1):
        pages = math.ceil(blobs / LIST_KEYS)
        total += Requests(list=pages + 1, delete=pages)
    return total


def publish_requests(objects: int) -> Requests:
    """Everything is copied out of staging and deleted there: object stores cannot rename.

    Staging is listed before and after, the copies once they are made, and what was there before; the pointer
    is deleted before all others.
    """
    pages = math.ceil(objects / LIST_KEYS)
    deletes = 1 + math.ceil((objects - 1) / LIST_KEYS)
    return Requests(copy=objects, list=3 * pages + 2, delete=deletes)
