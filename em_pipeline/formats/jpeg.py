"""Grey JPEG pictures, refused where libjpeg would read on through damage and invent the rest.

Markers and entropy-coded segments: ITU-T T.81, B.1.1 and B.2. libjpeg fills what is missing and only warns;
simplejpeg takes its warnings for errors, imagecodecs and Pillow do not.
"""

import re
from typing import Any

import simplejpeg
from numpy.typing import NDArray

START, END, SCAN, HUFFMAN = b"\xff\xd8", 0xD9, 0xDA, 0xC4
# Start-of-frame markers: all of 0xC0..0xCF but DHT (C4), JPG (C8) and DAC (CC).
FRAMES = frozenset(range(0xC0, 0xD0)) - {HUFFMAN, 0xC8, 0xCC}
# Frames in which long zeros may stand: first scans of progressive ones, flat rows of lossless ones.
LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
ZEROS_BEGIN = LOSSLESS | {0xC2, 0xC6, 0xCA, 0xCE}
MARKER = re.compile(rb"\xff+([^\xff\x00])")
# Within entropy-coded data stand stuffed zeros (FF00) and restart markers (D0–D7); all else ends them.
SCAN_END = re.compile(rb"\xff[^\xff\x00\xd0-\xd7]")
# 512 bits are more than a block of 63 coefficients, each the shortest code and one bit of the value.
LONGEST_ZEROS = 64
END_OF_BLOCK = 0


def decode_jpeg(data: bytes, most: int) -> NDArray[Any]:
    """The picture as y-x uint8. Raises `ValueError`, saying what is wrong, for damage, for colour, and for
    more than `most` pixels, for which memory would be taken whatever the stream holds.

    Damage is a stream without its end marker, one that ends before its picture does, and a stretch of zeros
    where no picture has one. JPEG has no checksum: a flipped bit or a few wrong bytes can decode to other
    grey values, and nothing here or in libjpeg can tell.
    """
    check_stream(data)
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    if space != "Gray":
        raise ValueError(f"its colours are {space}, not grey")
    if height * width > most:
        raise ValueError(f"its picture has {height}×{width} pixels where at most {most:,} belong")
    picture: NDArray[Any] = simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)[:, :, 0]
    return picture


def check_stream(data: bytes) -> int:
    """Walk the segments from the start marker to the end marker; gives the marker of the frame.

    Raises `ValueError` where they break off, hold no frame, or a stretch of zeros that no picture has.
    """
    if not data.startswith(START):
        raise ValueError("it does not begin as a JPEG does")
    at, frame, zeros_are_blank = len(START), 0, False
    while (marker := MARKER.match(data, at)) is not None:
        at, kind = marker.end(), marker[1][0]
        if kind == END and frame:
            return frame
        segment = data[at + 2 : at + int.from_bytes(data[at : at + 2])]
        at += 2 + len(segment)
        frame = kind if kind in FRAMES else frame
        zeros_are_blank |= kind in ZEROS_BEGIN or (kind == HUFFMAN and _blank_is_zeros(segment))
        if kind == SCAN:
            at = _end_of_scan(data, at, zeros_are_blank)
    raise ValueError(f"its JPEG stream breaks off or is damaged at byte {at:,} of {len(data):,}")


def _end_of_scan(data: bytes, start: int, zeros_are_blank: bool) -> int:
    """Where the next marker stands after the entropy-coded data that begin at `start`."""
    following = SCAN_END.search(data, start)
    if following is None:
        raise ValueError(f"it ends after {len(data):,} bytes without a JPEG's end marker")
    end = following.start()
    zeros = -1 if zeros_are_blank else data.find(bytes(LONGEST_ZEROS), start, end)
    if zeros >= 0:
        raise ValueError(f"from byte {zeros:,} on its picture is overwritten with zeros")
    return end


def _blank_is_zeros(tables: bytes) -> bool:
    """Whether a Huffman table for AC gives the end of a block the code of zeros, so that zeros are flat grey.

    A table is its class and number, how many codes there are of 1 to 16 bits, and their symbols: the first
    symbol has the code that is all zeros (T.81, B.2.4.2 and C.2).
    """
    at = 0
    while at + 17 < len(tables):
        if tables[at] >> 4 == 1 and tables[at + 17] == END_OF_BLOCK:
            return True
        at += 17 + sum(tables[at + 1 : at + 17])
    return False
