"""Compiled inner loops over blocks of voxels: no widened copies, no GIL.

`hatch_build.py` compiles `kernels.c` when the project is installed where there is a C compiler. Where there
was none `COMPILED` is None and numpy does the same, more slowly; every result is the same bit by bit.
"""

import ctypes
import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LIBRARY: Final = Path(__file__).with_name("_kernels.so")
SOURCE: Final = Path(__file__).with_name("kernels.c")
_INTEGERS: Final = frozenset(f"{kind}{nbytes}" for kind in "ui" for nbytes in (1, 2, 4, 8))
_KEYED: Final = frozenset(("f4", "u4", "i4", "u8", "i8"))


class _Extent(ctypes.Structure):
    """`extent` of kernels.c: voxels along z, y, x; distances of planes and rows in voxels."""

    _fields_ = [(name, ctypes.c_int64) for name in ("nz", "ny", "nx", "dz", "dy")]


_Triple = ctypes.c_int64 * 3
_Ranks = ctypes.c_int64 * 2


class _Moments(ctypes.Structure):
    """`moments` of kernels.c."""

    _fields_ = [
        ("first", ctypes.c_int64),
        ("second", ctypes.c_uint64),
        ("low", ctypes.c_int64),
        ("high", ctypes.c_int64),
        ("at_rank", _Ranks),
    ]


class _Tiling(ctypes.Structure):
    """`tiling` of kernels.c: chunks and voxels of each along z, y, x; bytes of a voxel."""

    _fields_ = [("count", _Triple), ("shape", _Triple), ("nbytes", ctypes.c_int64)]

    @classmethod
    def of(cls, chunks: NDArray[Any]) -> "_Tiling":
        return cls(_Triple(*chunks.shape[:3]), _Triple(*chunks.shape[3:]), chunks.itemsize)


class Kernels:
    """The functions of kernels.c, for blocks (z, y, x) in native byte order. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` where there is no such library, or it is another machine's or source's."""
        library = ctypes.CDLL(str(path))
        library.version.restype = ctypes.c_char_p
        if library.version().decode() != hashlib.sha256(SOURCE.read_bytes()).hexdigest():
            raise OSError(f"{path} was compiled from another version of {SOURCE.name}")
        pointer = ctypes.c_void_p
        self._measures = {nbytes: library[f"measure_{nbytes}"] for nbytes in "12"}
        for measure in self._measures.values():
            measure.argtypes = [pointer, pointer, ctypes.c_int, *[pointer] * 4]
            measure.restype = None
        self._keys = {name: _function(library, f"count_keys_{name}", 3) for name in _KEYED}
        self._means = {name: _function(library, f"mean_{name}", 6) for name in _INTEGERS}
        self._modes = {name: _function(library, f"mode_{name}", 6) for name in _INTEGERS}
        self._deal = library["deal"]
        self._deal.argtypes = [pointer] * 5
        self._deal.restype = None
        self._deal_file = library["deal_file"]
        self._deal_file.argtypes = [ctypes.c_int, *[pointer] * 3, ctypes.c_int64, *[pointer] * 3]
        self._deal_file.restype = ctypes.c_int

    def measure(
        self, block: NDArray[Any], ranks: tuple[int, int]
    ) -> tuple[NDArray[np.int64], tuple[int, ...]] | None:
        """Counts and moments of 8- or 16-bit integers; None where it cannot.

        Counts are in the order of the values. Moments are the sum of the values, that of their squares, the
        least and the greatest, and the values at the two ranks, which are counted from 1. The block has at
        least one voxel and less than 2³².
        """
        bins, extent = 1 << 8 * min(block.itemsize, 4), _extent(block)
        function = self._measures.get(_name(block)[1:]) if block.dtype.kind in "iu" else None
        if function is None or extent is None or not 0 < block.size < 1 << 32:
            return None
        found, counts, moments = np.zeros(bins, np.uint32), np.empty(bins, np.int64), _Moments()
        function(
            block.ctypes.data,
            ctypes.byref(extent),
            block.dtype.kind == "i",
            ctypes.byref(_Ranks(*ranks)),
            found.ctypes.data,
            counts.ctypes.data,
            ctypes.byref(moments),
        )
        low, high = moments.at_rank
        return counts, (moments.first, moments.second, moments.low, moments.high, low, high)

    def count_keys(self, block: NDArray[Any], counts: NDArray[np.int64]) -> bool:
        """Add to `counts` (65536) one for the key of each finite value; False where it cannot.

        Raises `ValueError` for another number of bins.
        """
        if counts.shape != (1 << 16,):
            raise ValueError(f"{counts.shape} bins for keys of 16 bits")
        function, extent = self._keys.get(_name(block)), _extent(block)
        if function is None or extent is None or block.size >= 1 << 32:
            return False
        found = np.zeros(counts.size, np.uint32)
        function(block.ctypes.data, ctypes.byref(extent), found.ctypes.data)
        counts += found
        return True

    def mean(self, block: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any] | None:
        """`downsample.mean_2x` of a block of integers; None where it cannot. Factors are 1 or 2."""
        return _reduced(self._means, block, factors)

    def mode(self, block: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any] | None:
        """`downsample.mode_2x` of a block of integers; None where it cannot. Factors are 1 or 2."""
        return _reduced(self._modes, block, factors)

    def deal(self, block: NDArray[Any], first: tuple[int, int, int], chunks: NDArray[Any]) -> bool:
        """Copy a block to the chunks that its voxels belong to; False where it cannot.

        `chunks` has the shape (chunks in z, y, x, then the chunk's own z, y, x); `first` is the voxel of all
        of them (z, y, x) where the block begins. Raises `ValueError` for a block that does not fit there.
        """
        extent = _extent(block)
        if extent is None or block.dtype != chunks.dtype or not chunks.flags.c_contiguous:
            return False
        _check_place(first, block.shape, chunks)
        self._deal(
            block.ctypes.data,
            ctypes.byref(extent),
            ctypes.byref(_Triple(*first)),
            ctypes.byref(_Tiling.of(chunks)),
            chunks.ctypes.data,
        )
        return True

    def deal_file(
        self,
        descriptor: int,
        starts: NDArray[np.int64],
        rows: tuple[int, int, int],
        band: NDArray[np.uint8],
        first: tuple[int, int, int],
        chunks: NDArray[Any],
    ) -> bool:
        """Read a box from a file and copy it to its chunks, as `deal` does; False where it cannot.

        The file may end before the box does, or the disk refuse to give it. Each plane begins at a byte of
        `starts` and has `rows`: how many, the voxels of each that are wanted, and the voxels from one to the
        next in the file. They are read through `band`, which has room for one at least. `chunks` is
        C-contiguous and of the file's type. Raises `ValueError` for a box that does not fit there.
        """
        count, width, distance = rows
        _check_place(first, (len(starts), count, width), chunks)
        row_bytes, wanted = distance * chunks.itemsize, width * chunks.itemsize
        # Rows of which less than half is wanted are read one by one.
        together = 1 if 2 * wanted < row_bytes else 1 + (band.size - wanted) // row_bytes
        if band.size < wanted or not chunks.flags.c_contiguous or not starts.flags.c_contiguous:
            raise ValueError(f"a band of {band.size} bytes for rows of {wanted}")
        read: int = self._deal_file(
            descriptor,
            starts.ctypes.data,
            ctypes.byref(_Extent(len(starts), count, width, 0, distance)),
            band.ctypes.data,
            together,
            ctypes.byref(_Triple(*first)),
            ctypes.byref(_Tiling.of(chunks)),
            chunks.ctypes.data,
        )
        return bool(read)


def _check_place(first: tuple[int, ...], shape: tuple[int, ...], chunks: NDArray[Any]) -> None:
    places = zip(first, shape, chunks.shape[:3], chunks.shape[3:], strict=True)
    if any(at < 0 or at + length > number * edge for at, length, number, edge in places):
        raise ValueError(f"a block {tuple(shape)} at {tuple(first)} reaches past chunks {chunks.shape}")


def _reduced(
    functions: dict[str, Any], block: NDArray[Any], factors: tuple[int, int, int]
) -> NDArray[Any] | None:
    if not set(factors) <= {1, 2}:
        raise ValueError(f"cells of {factors} voxels")
    function, extent = functions.get(_name(block)), _extent(block)
    if function is None or extent is None:
        return None
    out = np.empty([-(-n // f) for n, f in zip(block.shape, factors, strict=True)], block.dtype)
    function(block.ctypes.data, ctypes.byref(extent), *factors, out.ctypes.data)
    return out


def _name(block: NDArray[Any]) -> str:
    """As kernels.c calls the type; none of its names in foreign byte order."""
    return block.dtype.str[1:] if block.dtype.isnative else block.dtype.str


def _extent(block: NDArray[Any]) -> _Extent | None:
    """None where the block has gaps in its rows, or voxels that do not lie where C expects them."""
    nbytes = block.itemsize
    if block.ndim != 3 or not block.flags.aligned or (block.strides[2] != nbytes and block.shape[2] > 1):
        return None
    if block.strides[0] % nbytes or block.strides[1] % nbytes:
        return None
    return _Extent(*block.shape, block.strides[0] // nbytes, block.strides[1] // nbytes)


def _function(library: ctypes.CDLL, name: str, arguments: int) -> Any:
    function = library[name]
    pointer, number = ctypes.c_void_p, ctypes.c_int
    function.argtypes = [pointer, pointer, *[number] * (arguments - 3), pointer]
    function.restype = None
    return function


def load(path: Path) -> Kernels | None:
    """The kernels in a library; None where there is none that this machine can use."""
    try:
        return Kernels(path)
    except (OSError, AttributeError):
        return None


COMPILED: Final = load(LIBRARY)
