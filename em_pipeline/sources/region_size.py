"""How much of an image one dataset may take: regions reach petabytes, and a disk ends long before."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import Shape

# About an hour at 100 Mbit/s. A source's setting `largest_gb` raises it.
LARGEST_GB = 50.0
# Blocks of 128³ voxels: 35 TB of bytes. Every one of them has a row in the ledger.
MOST_BLOCKS = 1 << 24
BLOCK = Shape(128, 128, 128)
# Places where a chunk or shard may lie. Which of them are empty is kept in memory.
MOST_PLACES = 1 << 26
ELSEWHERE = "Choose a box or a level that holds data; of a random crop, another --seed"
SMALLER = "Name a smaller region with --roi z0:z1,y0:y1,x0:x1 --name NAME, or a coarser level with --level"


@dataclass(frozen=True)
class SizeLimit:
    """How many gigabytes, once decoded, are taken of a remote array: the setting `largest_gb` of `source`."""

    source: str
    gb: float


@runtime_checkable
class LimitedSource(Protocol):
    """A source of arrays, which refuses a region larger than its `size_limit`."""

    size_limit: SizeLimit


def check_bytes(dataset_id: str, image: str, size: int, limit: SizeLimit) -> None:
    """Raise `InputRefused`, with how to cut a region, where `size` bytes once decoded exceed the limit."""
    if size > limit.gb * 1e9:
        raise InputRefused(
            f"Take {dataset_id}",
            f"the region of {image} is {size / 1e9:,.0f} GB once decoded, and at most "
            f"{limit.gb:g} GB are taken",
            f"{SMALLER}; or raise the source's setting largest_gb "
            f"(EM_SOURCES__{limit.source.upper()}__LARGEST_GB)",
        )


def check_extent(dataset_id: str, image: str, shape: Shape, stored: Shape = BLOCK) -> None:
    """Raise `InputRefused`, with how to cut a region, for more voxels than a volume is written of.

    `shape` is the region's, `stored` that of the image's chunks or shards, both in voxels z-y-x. That nothing
    is stored of most of it makes it no smaller: each place is looked at.
    """
    for tile, most, what in ((BLOCK, MOST_BLOCKS, "blocks of 128³ voxels"), (stored, MOST_PLACES, "chunks")):
        count = Shape(*(-(-n // t) for n, t in zip(shape, tile, strict=True))).voxels
        if count > most:
            voxels = "×".join(map(str, shape))
            raise InputRefused(
                f"Take {dataset_id}",
                f"the region of {image} is {voxels} voxels (z, y, x): {count:,} {what}, and at most {most:,} "
                "are taken",
                SMALLER,
            )
