"""How the voxels of a file without a header lie."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from em_pipeline.domain.geometry import Shape, shape_of

_DTYPE: Final = re.compile(r"([<>|]?[iu][1248]|[<>]?f[48]|u?int(8|16|32|64)|float(32|64))")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLayout:
    """How the voxels of a file without a header lie, which only a person can say.

    `shape` is z-y-x. `dtype` is numpy's name, with `<` or `>` where it matters (`>u2`; little-endian if
    neither). `offset` are bytes before the first voxel. `order` is C where x runs fastest in the file, F
    where z does. Raises `ValueError` for types that are not real numbers, empty shapes, negative offsets and
    other orders.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    shape: Shape
    dtype: str
    offset: int = 0
    order: Literal["C", "F"] = "C"

    def __post_init__(self) -> None:
        shape = shape_of(self.shape)
        if min(shape) < 1:
            raise ValueError(f"shape {tuple(shape)} (z-y-x) is empty or negative")
        if not (isinstance(self.dtype, str) and _DTYPE.fullmatch(self.dtype)):
            raise ValueError(f"dtype {self.dtype!r} is no type of real numbers")
        if type(self.offset) is not int or self.offset < 0:
            raise ValueError(f"offset {self.offset!r} is no whole number from 0")
        if self.order not in ("C", "F"):
            raise ValueError(f"order {self.order!r} is neither C nor F")
        object.__setattr__(self, "shape", shape)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"shape": list(self.shape), "dtype": self.dtype, "offset": self.offset, "order": self.order}
