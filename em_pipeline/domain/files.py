"""Files of a dataset: as a portal lists them, and as we hold them."""

import hashlib
from pathlib import PurePosixPath
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def _safe_relative(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in value or "\0" in value:
        raise ValueError(f"{value!r} is not a plain relative path")
    return str(path)


class RemoteFile(BaseModel):
    """One file at its source. `path` is where it goes below the dataset's raw folder.

    `url` is http(s), ftp, s3, gs (the key as it is, not percent-encoded), or file:// for a file that stays
    where it is. `mirrors` are other addresses of the same bytes, tried in order while `url` is unavailable;
    `etag` and `modified` are what `url` says. `checksum` is `<algorithm>:<hex>`.
    With `offset`, the file is the `size` bytes of `url` from that byte on (a chunk inside a shard).
    `may_be_absent` says that the portal answers 404 for a file that was never written because all of it is
    the fill value. Raises a pydantic `ValidationError` for a path that could leave the folder, and for an
    `offset` without a size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    path: str
    size: int | None = Field(default=None, ge=0)
    etag: str | None = None
    modified: str | None = None
    checksum: str | None = None
    offset: int | None = Field(default=None, ge=0)
    may_be_absent: bool = False
    mirrors: tuple[str, ...] = ()

    _path = field_validator("path")(_safe_relative)

    @model_validator(mode="after")
    def _range_has_an_end(self) -> Self:
        if self.offset is not None and not self.size:
            raise ValueError(f"{self.path!r} begins at byte {self.offset} of its URL and has no size")
        return self


class RawFile(BaseModel):
    """One file as we hold it: below the raw folder, or, with a file:// url, in place.

    `url` is where the bytes came from, a mirror's address too; with `offset`, they are those from there on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    path: str
    size: int = Field(ge=0)
    sha256: str
    etag: str | None = None
    modified: str | None = None
    offset: int | None = Field(default=None, ge=0)

    _path = field_validator("path")(_safe_relative)

    @property
    def in_place(self) -> bool:
        return self.url.startswith("file://")


class Manifest(BaseModel):
    """Every raw file of a dataset's revision; written last, so its presence means they are all whole.

    `absent` are paths that the portal was asked for and does not have, although it might have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_id: str
    revision: str
    files: tuple[RawFile, ...]
    absent: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted lines `<sha256>  <path>`, and `absent  <path>` of what the portal lacks."""
        lines = sorted(
            [f"{file.sha256}  {file.path}\n" for file in self.files]
            + [f"absent  {path}\n" for path in self.absent]
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()
