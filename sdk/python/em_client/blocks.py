"""One block: what was asked, and the answer checked against what the metadata lets it be."""

import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from em_client.errors import AnswerDamaged, AnswerInvalid, RequestRefused
from em_client.models import Block, Ints, Level, floats, ints, little_endian
from em_client.transport import read_exactly

if TYPE_CHECKING:
    import httpx
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """A box of one level: `start` and `size` in its voxels, z-y-x."""

    dataset_id: str
    level: int
    start: Ints
    size: Ints
    version: str | None

    @classmethod
    def checked(
        cls, dataset_id: str, level: int, start: Sequence[int], size: Sequence[int], version: str | None
    ) -> Self:
        """Raises `RequestRefused` for anything but whole numbers; their range is the server's to judge."""
        try:
            z, y, x = (operator.index(value) for value in start)
            depth, height, width = (operator.index(value) for value in size)
            return cls(dataset_id, operator.index(level), (z, y, x), (depth, height, width), version)
        except (TypeError, ValueError) as error:
            raise RequestRefused(
                f"Read a block of {dataset_id}",
                f"start {start!r}, size {size!r}, level {level!r} are not whole numbers along z, y, x",
                "Give z, y, x and level as integers and size as three of them",
            ) from error

    @property
    def params(self) -> dict[str, Any]:
        """The query of `/api/v1/block`."""
        z, y, x = self.start
        size = ",".join(map(str, self.size))
        params: dict[str, Any] = {"dataset_id": self.dataset_id, "z": z, "y": y, "x": x, "level": self.level}
        params |= {"size": size, "format": "raw"}
        return params if self.version is None else {**params, "version": self.version}

    def __str__(self) -> str:
        box = ", ".join(f"{a}:{a + n}" for a, n in zip(self.start, self.size, strict=True))
        return f"Read block [{box}] of level {self.level} of {self.dataset_id}"


def read_block(request: BlockRequest, response: "httpx.Response", version: str, level: Level) -> Block:
    """The block in `response`, which must be exactly what `level` of `version` makes of `request`.

    Raises `AnswerInvalid` where headers contradict the metadata and `AnswerDamaged` where the body has
    another length or checksum than promised.
    """
    tried = str(request)
    stop = ints(min(a + n, m) for a, n, m in zip(request.start, request.size, level.shape, strict=True))
    shape = ints(b - a for a, b in zip(request.start, stop, strict=True))
    if min(shape) < 1:
        raise AnswerInvalid(tried, f"voxels were sent for a box outside the level's shape {level.shape}")
    valid_fraction, states, crc = _check_headers(tried, response.headers, level, request.start, stop)
    try:
        dtype = little_endian(level.dtype)
    except (TypeError, ValueError) as error:
        raise AnswerInvalid(tried, f"the metadata gives the dtype {level.dtype!r} ({error})") from error

    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    announced = response.headers.get("content-length", str(size))
    if announced != str(size):
        raise AnswerInvalid(tried, f"the answer announces {announced} bytes where the box has {size}")
    body = read_exactly(tried, response, size)
    found = zlib.crc32(body)
    if found != crc:
        raise AnswerDamaged(tried, f"the voxels' CRC-32 is {found:08x}, the server announced {crc:08x}")
    return Block(
        data=_array(body, dtype, shape),
        dataset_id=request.dataset_id,
        version=version,
        level=level.index,
        start=request.start,
        stop=stop,
        voxel_size_nm=level.voxel_size_nm,
        valid_fraction=valid_fraction,
        states=states,
    )


def _check_headers(
    tried: str, headers: Mapping[str, str], level: Level, start: Ints, stop: Ints
) -> tuple[float, dict[str, int], int]:
    """Valid fraction, states and CRC-32, once everything the metadata also knows agrees with it."""
    box = ",".join(f"{a}:{b}" for a, b in zip(start, stop, strict=True))
    shape = ints(b - a for a, b in zip(start, stop, strict=True))
    try:
        pairs = {
            "level": (int(headers["x-em-level"]), level.index),
            "box": (headers["x-em-box"], box),
            "shape": (ints(headers["x-em-shape"].split(",")), shape),
            "dtype": (headers["x-em-dtype"], level.dtype),
            "voxel size": (floats(headers["x-em-voxel-size-nm"].split(",")), level.voxel_size_nm),
        }
        valid_fraction = float(headers["x-em-valid-fraction"])
        counts = (entry.split("=") for entry in headers["x-em-states"].split(","))
        states = {name: int(count) for name, count in counts}
        crc = int(headers["x-em-crc32"], 16)
    except (KeyError, ValueError) as error:
        raise AnswerInvalid(
            tried,
            f"the answer's block headers are missing or unreadable ({error!r})",
            "Check that the address is that of an em-pipeline sidecar",
        ) from error
    for name, (given, expected) in pairs.items():
        if given != expected:
            raise AnswerInvalid(tried, f"the answer's {name} is {given}, the metadata makes it {expected}")
    if not 0.0 <= valid_fraction <= 1.0:
        raise AnswerInvalid(tried, f"the answer's valid fraction is {valid_fraction}")
    return valid_fraction, states, crc


def _array(body: bytearray, dtype: "np.dtype[Any]", shape: Ints) -> "NDArray[Any]":
    import numpy as np

    array = np.frombuffer(body, dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
