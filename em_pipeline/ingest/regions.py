"""Parts of a dataset: levels, boxes and random crops, as people write them, and the names they give.

Layouts and codecs, as people write them, too. Everything is in voxels of one level, z-y-x.
"""

import hashlib
import re
from dataclasses import dataclass

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import CODECS, DatasetSpec
from em_pipeline.ingest.claims import spec_claims
from em_pipeline.sources.base import Source

ROI = re.compile(r"(-?\d+):(-?\d+),(-?\d+):(-?\d+),(-?\d+):(-?\d+)")
# Of an image set's name in a part's: leaves room for the level and box in an id of 120 characters.
LONGEST = 32
AUTO = "auto"
SIZE = re.compile(r"(-?\d+),(-?\d+),(-?\d+)")


@dataclass(frozen=True)
class RandomCrop:
    """A box of `size` (z-y-x voxels) somewhere in a volume, where `seed` decides."""

    size: Shape
    seed: int

    def box_in(self, shape: Shape) -> BoundingBox:
        """The box in a volume of `shape`: the same for the same shape, size and seed, on every machine.

        The start along each axis is a SHA-256 modulo the number of possible starts, which does not change
        with the versions of Python or numpy as their generators may. Raises `InputRefused` where the crop
        is larger than the volume.
        """
        if any(n > whole for n, whole in zip(self.size, shape, strict=True)):
            raise InputRefused(
                f"Draw a crop of {written(self.size)} (z,y,x) voxels",
                f"the volume is only {written(shape)}",
                "Give a smaller --random-crop, or a finer --level",
            )
        start = (
            _number(f"{self.seed} {axis} {n} {whole}") % (whole - n + 1)
            for axis, n, whole in zip("zyx", self.size, shape, strict=True)
        )
        return BoundingBox.at(Shape(*start), self.size)

    def reason(self, shape: Shape) -> str:
        """Why the box lies where it does, for the spec."""
        return f"random crop, seed {self.seed}, of {tuple(shape)}"


def parse_level(text: str) -> int | str:
    """A level's number, or its name. Raises `InputRefused` where the text is neither."""
    level = text.strip()
    if not level or level.startswith("-"):
        raise InputRefused(
            f"Read the level {text!r}", "it is no number from 0 and no name", "Write it like 2, or like s4"
        )
    return int(level) if level.isascii() and level.isdigit() else level


def parse_codec(text: str) -> str:
    """The name of a codec, or `auto` for the one that suits the type. Raises `InputRefused` for others."""
    name = text.strip().lower()
    if name in (AUTO, *CODECS):
        return name
    raise InputRefused(
        f"Use the codec {text!r}", "it is not known", f"Give one of {', '.join(CODECS)}; {AUTO} chooses one"
    )


def parse_roi(text: str) -> BoundingBox:
    """`z0:z1,y0:y1,x0:x1`, half-open, in voxels. Raises `InputRefused` for other text and for empty boxes."""
    match = ROI.fullmatch(re.sub(r"\s", "", text))
    found = "it is not three ranges of whole voxels, z0:z1,y0:y1,x0:x1"
    if match is not None:
        z0, z1, y0, y1, x0, x1 = map(int, match.groups())
        try:
            return BoundingBox(start=Shape(z0, y0, x0), stop=Shape(z1, y1, x1))
        except ValueError:
            found = "each start must be 0 or more, and below its stop"
    raise InputRefused(
        f"Read the region {text!r}",
        found,
        "Write it like 0:128,256:512,256:512 (z,y,x; a stop is the first voxel left out)",
    )


def parse_shape(text: str, option: str) -> Shape:
    """`Z,Y,X` in voxels, as given to `option`. Raises `InputRefused` where it is not three sizes above 0."""
    match = SIZE.fullmatch(re.sub(r"\s", "", text))
    shape = Shape(*map(int, match.groups())) if match else Shape(0, 0, 0)
    if min(shape) < 1:
        raise InputRefused(
            f"Read {option} {text!r}",
            "it is not three numbers of voxels above 0",
            "Write it like 128,256,256",
        )
    return shape


def parse_random_crop(size: str | None, seed: int | None) -> RandomCrop | None:
    """A crop from its two options. Raises `InputRefused` where one is given without the other."""
    if size is None and seed is None:
        return None
    if size is None or seed is None:
        missing = "--random-crop Z,Y,X" if size is None else "--seed N"
        raise InputRefused(
            "Draw a random crop", f"{missing} is missing", "Give both, so that it can be drawn again"
        )
    return RandomCrop(parse_shape(size, "--random-crop"), seed)


def parse_raw_layout(shape: str | None, dtype: str | None) -> RawLayout | None:
    """The layout of a file without a header, from its two options. Raises `InputRefused` like the others."""
    if shape is None and dtype is None:
        return None
    if shape is None or dtype is None:
        missing = "--raw-shape Z,Y,X" if shape is None else "--raw-dtype DTYPE"
        raise InputRefused("Read a file without a header", f"{missing} is missing", "Give both")
    try:
        return RawLayout(shape=parse_shape(shape, "--raw-shape"), dtype=dtype)
    except ValueError as error:
        raise InputRefused(
            f"Read --raw-dtype {dtype!r}", "it is no type of real numbers", "Write it like uint8, >u2 or <f4"
        ) from error


def portal_shape(source: Source, spec: DatasetSpec) -> Shape:
    """Shape of the spec's level, as its portal tells it. Raises `InputRefused` where it does not."""
    claims = [*spec_claims(spec), *source.fetch_record(spec).claims]
    told = DatasetRecord.resolve(spec.dataset_id, "asked", claims).fields.core.volume_shape
    if told.z is None or told.y is None or told.x is None:
        raise InputRefused(
            f"Draw a random crop of {spec.dataset_id}",
            f"{spec.source} does not tell the shape of the volume before its files are read",
            "Give the box itself with --roi z0:z1,y0:y1,x0:x1",
        )
    return Shape(told.z, told.y, told.x)


def part_name(
    level: int | str | None,
    box: BoundingBox | None,
    crop: RandomCrop | None,
    image_set: int | str | None = None,
) -> str:
    """The name of a part where a person gives none; empty for the whole.

    The image set's name (or `set2` for number 2), the level's (`s4`, or `l2` for number 2), then
    `128x256x256-seed7` for a crop or the box as `z0-128_y256-512_x0-99`; joined by `-`.
    """
    parts = []
    if image_set is not None:
        parts.append(f"set{image_set}" if isinstance(image_set, int) else _short(image_set))
    if level is not None:
        parts.append(f"l{level}" if isinstance(level, int) else level)
    if crop is not None:
        parts.append(f"{'x'.join(map(str, crop.size))}-seed{crop.seed}")
    elif box is not None:
        ranges = zip("zyx", box.start, box.stop, strict=True)
        parts.append("_".join(f"{axis}{start}-{stop}" for axis, start, stop in ranges))
    return "-".join(parts)


def written(shape: Shape) -> str:
    """As the options take it: `128,256,256`."""
    return ",".join(map(str, shape))


def _short(name: str) -> str:
    """A name that fits into a dataset id: itself, or its beginning and a hash if long or with `..`."""
    if len(name) <= LONGEST and ".." not in name:
        return name
    return f"{name[:LONGEST].replace('..', '-')}-{short_hash(name)}"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest())
