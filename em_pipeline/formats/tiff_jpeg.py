"""Strips and tiles of TIFF that are JPEG streams, refused where libjpeg would fill up what is lost.

Tables that all segments share stand once in the tag JPEGTables, as a stream of their own (TIFF Technical Note
2, https://www.awaresystems.be/imaging/tiff/specification/TIFFTechNote2.txt).
"""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from tifffile import COMPRESSION

from em_pipeline.formats.jpeg import LOSSLESS, START, check_stream, decode_jpeg

JPEG = frozenset({COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY})
END = b"\xff\xd9"


def whole_stream(segment: bytes, tables: bytes | None) -> bytes:
    """The stream of a strip or tile with the tables that it shares."""
    shared = (tables or b"").removeprefix(START).removesuffix(END)
    return START + shared + segment.removeprefix(START) if segment.startswith(START) else segment


def decode_segment(
    segment: bytes, tables: bytes | None, bits: int, most: int, read_on: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Rows and columns of a strip or tile of at most `most` pixels, one sample of `bits` bits.

    Only libjpeg's pictures of 8 bits with loss have a decoder that reports all it fills up (`decode_jpeg`).
    Of others the segments are walked, and `read_on` decodes them. Raises `ValueError` for damage.
    """
    stream = whole_stream(segment, tables)
    frame = check_stream(stream)
    return decode_jpeg(stream, most) if bits == 8 and frame not in LOSSLESS else read_on()
