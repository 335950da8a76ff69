"""Files of a dataset: as a portal lists them, and as we hold them."""

import hashlib
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, field_validator


def _safe_relative(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in value or "\0" in value:
        raise ValueError(f"{value!r} is not a plain relative path")
    return str(path)


class RemoteFile(BaseModel):
    """One file at its source. `path` is where it goes below the dataset's raw folder.

    `url` is http(s), or file:// for a file that stays where it is. `checksum` is `<algorithm>:<hex>`.
    Raises a pydantic `ValidationError` for a path that could leave the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    path: str
    size: int | None = Field(default=None, ge=0)
    etag: str | None = None
    modified: str | None = None
    checksum: str | None = None

    _path = field_validator("path")(_safe_relative)


class RawFile(BaseModel):
    """One file as we hold it: below the raw folder, or, with a file:// url, in place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    path: str
    size: int = Field(ge=0)
    sha256: str
    etag: str | None = None
    modified: str | None = None

    _path = field_validator("path")(_safe_relative)

    @property
    def in_place(self) -> bool:
        return self.url.startswith("file://")


class Manifest(BaseModel):
    """Every raw file of a dataset's revision; written last, so its presence means they are all whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_id: str
    revision: str
    files: tuple[RawFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted lines `<sha256>  <path>`."""
        lines = sorted(f"{file.sha256}  {file.path}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
