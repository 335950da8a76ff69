"""Gzip around documents and chunks, which servers and writers of precomputed volumes each may add."""

import zlib

GZIP_MAGIC = b"\x1f\x8b"


def gunzip(data: bytes, most: int) -> bytes:
    """`data` without gzip around them: its first member.

    Raises `ValueError` for a stream that is damaged, cut short, or holds more than `most` bytes: a few
    kilobytes can stand for gigabytes, so that no more than those are ever unpacked.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(f"its gzip stream is damaged: {error}") from error
    if not unpacker.eof or len(plain) > most:
        raise ValueError(f"its gzip stream is cut short, or holds more than {most:,} bytes")
    return plain
