"""How much of a remote image one dataset may take: regions reach petabytes, and a disk ends long before."""

from em_pipeline.domain.errors import InputRefused

# About an hour at 100 Mbit/s. A source's setting `largest_gb` raises it.
LARGEST_GB = 50.0


def check_bytes(dataset_id: str, image: str, size: int, largest_gb: float) -> None:
    """Raise `InputRefused`, with how to cut a region, where `size` bytes once decoded exceed `largest_gb`."""
    if size > largest_gb * 1e9:
        raise InputRefused(
            f"Take {dataset_id}",
            f"the region of {image} is {size / 1e9:,.0f} GB once decoded, and at most "
            f"{largest_gb:g} GB are taken",
            "Name a smaller region with --roi z0:z1,y0:y1,x0:x1 --name NAME, a coarser level with --level, "
            "or raise the source's setting largest_gb",
        )
