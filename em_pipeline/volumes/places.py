"""What matters to readers of where a volume lies."""

from em_pipeline.domain.blobs import Blobs


def is_remote(place: Blobs) -> bool:
    """Whether each read is a request to an object store: slow by itself, and many go on at once."""
    return bool(place.kvstore()["driver"] != "file")
