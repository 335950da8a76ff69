"""Read blocks of electron-microscopy volumes from an em-pipeline sidecar.

    from em_client import EMClient

    with EMClient("http://127.0.0.1:8000") as em:
        block = em.get_block("empiar-11759", 0, 0, 0)
        block.data  # ndarray, z-y-x

Every block is checked against the dataset's metadata and a checksum: what arrives is what is stored, or an
error is raised. Importing this package imports neither numpy nor httpx; they come with the first request.
"""

from em_client.client import EMClient
from em_client.errors import (
    AnswerInvalid,
    ChunkCorrupt,
    EMError,
    NotFound,
    RequestRefused,
    ServerFailed,
    ServerUnavailable,
)
from em_client.models import Block, Check, Dataset, Evidence, Field, Health, Level, Metadata

__version__ = "0.1.0"

__all__ = [
    "AnswerInvalid",
    "Block",
    "Check",
    "ChunkCorrupt",
    "Dataset",
    "EMClient",
    "EMError",
    "Evidence",
    "Field",
    "Health",
    "Level",
    "Metadata",
    "NotFound",
    "RequestRefused",
    "ServerFailed",
    "ServerUnavailable",
]
