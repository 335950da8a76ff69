"""A picture of a volume: three orthogonal mid slices in true proportion, a scale bar and the histogram."""

import io
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.metadata import LevelInfo
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.statistics import VolumeStatistics

_SIDE: Final = 900  # pixels for the longer side of the three slices together
_LARGEST: Final = 1.25  # pixels across a voxel, where there is a finer level
_MARGIN, _GAP, _STRIP, _CAPTION = 16, 8, 84, 22
_BACKGROUND, _FRAME, _TEXT, _FAINT = (18, 20, 24), (52, 57, 66), (226, 229, 234), (138, 145, 156)
_BAR, _TAIL, _CURVE = (255, 255, 255), (74, 81, 92), (112, 176, 214)
_HOLE, _HATCH, _STRIPE = (44, 36, 30), (150, 108, 52), 12
_ROWS: Final = 64  # of a plane, made grey at once in numbers of 8 bytes
_LEAST: Final = 40  # pixels across a slice, so that a single section can be seen at all

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Layout:
    """Panel sizes in pixels, and pixels for one nanometre. xy is above xz and left of zy."""

    scale: float
    width: int
    height: int
    depth: int


def preview_png(reader: VolumeReader, statistics: VolumeStatistics) -> bytes:
    """PNG of the volume: xy, xz and zy through its centre, black at p01 and white at p99 (labels in colours).

    Voxels that the source does not hold are hatched; a slice that would show little else goes through where
    more is held. Slices are in physical proportion, but none is thinner than 40 pixels. Reads three planes of
    one coarse level. Raises `ChunkCorrupt` like the reader.
    """
    level = _level(reader)
    layout = _layout(level)
    places = _places(reader, level)
    paint = _coloured if reader.info.kind == "labels" else _grey

    right = _MARGIN + layout.width + _GAP
    below = _MARGIN + layout.height + _GAP
    strip_top = below + layout.depth + _CAPTION + _GAP
    total = (max(right + layout.depth + _MARGIN, 460), strip_top + _STRIP + _CAPTION + _MARGIN)
    canvas = Image.new("RGB", total, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    finest = reader.levels[0]
    at = [i * n // m for i, n, m in zip(places, finest.shape, level.shape, strict=True)]
    for axis, place, size, name in (
        (0, (_MARGIN, _MARGIN), (layout.width, layout.height), f"xy   z = {at[0]}"),
        (1, (_MARGIN, below), (layout.width, layout.depth), f"xz   y = {at[1]}"),
        (2, (right, _MARGIN), (layout.depth, layout.height), f"zy   x = {at[2]}"),
    ):
        smooth = Image.Resampling.NEAREST if reader.info.kind == "labels" else Image.Resampling.BICUBIC
        plane, absent = _plane(reader, level, places[axis], axis)
        canvas.paste(Image.fromarray(paint(plane, statistics)).resize(size, smooth), place)
        if absent is not None:
            canvas.paste(_hatched(size), place, Image.fromarray(absent).resize(size))
        draw.rectangle((place[0] - 1, place[1] - 1, place[0] + size[0], place[1] + size[1]), outline=_FRAME)
        _panel_name(draw, place, size, name)
    _scale_bar(draw, layout)
    # The font that Pillow brings has neither × nor µ.
    extent = f"{' x '.join(map(str, finest.shape))} voxels   {finest.voxel_size}".replace("×", "x")
    hatched = "   hatched: not held by the source" if reader.ledger.missing else ""
    caption = f"{extent}   {finest.dtype}   z, y, x{hatched}"
    draw.text((_MARGIN, below + layout.depth + 6), caption, _FAINT, _font(12))
    _histogram(draw, statistics, strip_top, total[0] - 2 * _MARGIN)
    sink = io.BytesIO()
    canvas.save(sink, "PNG", compress_level=3)
    return sink.getvalue()


def _level(reader: VolumeReader) -> LevelInfo:
    """The coarsest level whose voxels are about a pixel across, or the finest: more would not be seen."""
    for level in reversed(reader.levels):
        if _layout(level).scale * max(level.voxel_size.y, level.voxel_size.x) <= _LARGEST:
            return level
    return reader.levels[0]


def _layout(level: LevelInfo) -> _Layout:
    depth, height, width = (n * v for n, v in zip(level.shape, level.voxel_size, strict=True))
    scale = _SIDE / max(width + depth, height + depth)
    return _Layout(scale, *(max(_LEAST, round(extent * scale)) for extent in (width, height, depth)))


def _places(reader: VolumeReader, level: LevelInfo) -> Shape:
    """Which planes are drawn across z, y, x: the middle ones where none holds more than twice as much."""
    middle = Shape(*(n // 2 for n in level.shape))
    if reader.ledger.missing is None:
        return middle
    missing = reader.ledger.missing.pyramid([one.shape for one in reader.levels])[level.index]
    lengths = [np.diff(cut) for cut in missing.cuts]
    places = []
    for axis, (cut, at) in enumerate(zip(missing.cuts, middle, strict=True)):
        across = [n if other != axis else np.ones_like(n) for other, n in enumerate(lengths)]
        held = np.einsum("zyx,z,y,x->" + "zyx"[axis], ~missing.cells, *across)
        nearest = np.clip(at, cut[:-1], cut[1:] - 1)
        fullest = min(range(len(held)), key=lambda n: (-held[n], abs(nearest[n] - at)))
        here = np.searchsorted(cut, at, "right") - 1
        places.append(at if 2 * held[here] >= held[fullest] else int(nearest[fullest]))
    return Shape(*places)


def _plane(
    reader: VolumeReader, level: LevelInfo, place: int, axis: int
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The plane at `place` across `axis`, rows downwards, (y, x), (z, x) or (y, z); what of it is absent."""
    start, size = [0, 0, 0], list(level.shape)
    start[axis], size[axis] = place, 1
    block = reader.read_block(level.index, BoundingBox.at(Shape(*start), Shape(*size)))
    plane = block.data.squeeze(axis)
    absent = None if block.absent is None else block.absent.squeeze(axis)
    if axis == 2:
        return plane.T, None if absent is None else absent.T
    return plane, absent


def _hatched(size: tuple[int, int]) -> Image.Image:
    """Diagonal stripes, as no voxels look."""
    rows, columns = np.indices(size[::-1])
    stripe = (rows + columns) % _STRIPE < 2
    return Image.fromarray(np.where(stripe[..., None], _HATCH, _HOLE).astype(np.uint8))


def _grey(plane: NDArray[Any], statistics: VolumeStatistics) -> NDArray[np.uint8]:
    if not statistics.count:
        return np.zeros(plane.shape, np.uint8)
    # A quarter of everything, for the differences of float64 to fit one.
    low, high = statistics.p01 / 4, statistics.p99 / 4
    span = high - low if high > low else 1.0 / 4
    grey = np.empty(plane.shape, np.uint8)
    for first in range(0, len(plane), _ROWS):
        rows = plane[first : first + _ROWS].astype(np.float64) / 4
        values = np.nan_to_num(rows, nan=low, posinf=high, neginf=low)
        with np.errstate(over="ignore"):  # far beyond the percentiles is black or white
            grey[first : first + _ROWS] = np.clip((values - low) / span, 0, 1) * 255 + 0.5
    return grey


def _coloured(plane: NDArray[Any], statistics: VolumeStatistics) -> NDArray[np.uint8]:  # noqa: ARG001
    """A colour for each label, the same in every picture; background black."""
    with np.errstate(over="ignore"):
        # Fibonacci hashing (Knuth, TAOCP 6.4) spreads neighbouring ids over the hues.
        hashed = plane.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hue = (hashed >> np.uint64(56)).astype(np.uint8)
    value = (160 + ((hashed >> np.uint64(40)) & np.uint64(0x5F))).astype(np.uint8)
    hsv = np.stack([hue, np.full_like(hue, 150), np.where(plane == 0, np.uint8(0), value)], axis=-1)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def _panel_name(draw: ImageDraw.ImageDraw, place: tuple[int, int], size: tuple[int, int], name: str) -> None:
    """In the panel's upper left corner; the axes alone where a panel is narrow."""
    font = _font(12)
    if font.getlength(name) + 16 > size[0]:
        name = name.split()[0]
    left, top, right, bottom = draw.textbbox((place[0] + 8, place[1] + 6), name, font)
    draw.rounded_rectangle((left - 4, top - 3, right + 4, bottom + 3), 3, fill=_BACKGROUND)
    draw.text((place[0] + 8, place[1] + 6), name, _TEXT, font)


def _scale_bar(draw: ImageDraw.ImageDraw, layout: _Layout) -> None:
    """The longest 1, 2 or 5 times a power of ten that fits a quarter of the xy slice."""
    room = layout.width / 4 / layout.scale
    power = 10.0 ** math.floor(math.log10(room))
    length = max(m * power for m in (1, 2, 5) if m * power <= room)
    pixels = max(1, round(length * layout.scale))
    name = f"{length / 1000:g} microns" if length >= 1000 else f"{length:g} nm"
    font = _font(13)
    right, bottom = _MARGIN + layout.width - 12, _MARGIN + layout.height - 12
    left = right - max(pixels, math.ceil(font.getlength(name)))
    draw.rounded_rectangle((left - 7, bottom - 25, right + 7, bottom + 6), 4, fill=_BACKGROUND)
    draw.rectangle((right - pixels, bottom - 3, right, bottom), fill=_BAR)
    draw.text(((left + right) / 2, bottom - 7), name, _TEXT, font, anchor="ms")


def _histogram(draw: ImageDraw.ImageDraw, statistics: VolumeStatistics, top: int, width: int) -> None:
    """Counts (square root) from somewhat below p01 to somewhat above p99, the drawn contrast in colour."""
    floor = top + _STRIP
    draw.line((_MARGIN, floor, _MARGIN + width, floor), _FRAME)
    if not statistics.count:
        draw.text((_MARGIN, floor + 6), "no finite voxel", _FAINT, _font(12))
        return
    # A quarter of everything, as in `_grey`.
    low, high = statistics.p01 / 4, statistics.p99 / 4
    span = max(high - low, 1.0 / 4 if high == low else 0.0)
    first, last = low - 0.15 * span, high + 0.15 * span
    edges = np.linspace(first, last, width + 1)
    cumulative = np.concatenate([[0], np.cumsum(statistics.histogram)])
    counts = np.diff(np.interp(edges, statistics.bin_edges() / 4, cumulative))
    heights = np.sqrt(counts / max(counts.max(), 1e-300)) * (_STRIP - 8)
    for column, height in enumerate(heights):
        if height >= 0.5:
            colour = _CURVE if low <= edges[column] <= high else _TAIL
            x = _MARGIN + column
            draw.line((x, floor - 1, x, floor - round(height)), colour)
    for value, name, anchor in ((low, "p01", "la"), (high, "p99", "ra")):
        x = _MARGIN + round((value - first) / (last - first) * width)
        draw.line((x, top, x, floor), _FAINT)
        draw.text((x, floor + 6), f"{name}  {value * 4:.5g}", _TEXT, _font(12), anchor=anchor)
    middle = f"mean {statistics.mean:.5g}   std {statistics.std:.5g}"
    draw.text((_MARGIN + width / 2, floor + 6), middle, _FAINT, _font(12), anchor="ma")


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
