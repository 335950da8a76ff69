"""What the sidecar tells, as plain values. Axes are z, y, x; lengths nanometres; indices voxels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

Ints = tuple[int, int, int]
Floats = tuple[float, float, float]


def ints(values: Any) -> Ints:
    """Three integers out of JSON. Raises ValueError or TypeError where they are not."""
    z, y, x = values
    return int(z), int(y), int(x)


def floats(values: Any) -> Floats:
    """Three numbers out of JSON. Raises ValueError or TypeError where they are not."""
    z, y, x = values
    return float(z), float(y), float(x)


@dataclass(frozen=True, slots=True)
class Health:
    """That the sidecar serves: its software version and the catalogue's state."""

    status: str
    version: str

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        return cls(status=str(answer["status"]), version=str(answer["version"]))


@dataclass(frozen=True, slots=True)
class Dataset:
    """One published dataset in a listing. `shape` is voxels of level 0, `voxel_size_nm` its voxel size."""

    dataset_id: str
    source: str
    version: str
    title: str | None
    shape: Ints
    dtype: str
    voxel_size_nm: Floats
    organism: str | None
    licence: str | None

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        return cls(
            dataset_id=str(answer["dataset_id"]),
            source=str(answer["source"]),
            version=str(answer["version"]),
            title=answer.get("title"),
            shape=ints(answer["shape"]),
            dtype=str(answer["dtype"]),
            voxel_size_nm=floats(answer["voxel_size_nm"]),
            organism=answer.get("organism"),
            licence=answer.get("licence"),
        )


@dataclass(frozen=True, slots=True)
class Level:
    """One step of the pyramid, 0 = full. `translation_nm` is the centre of its first voxel."""

    index: int
    shape: Ints
    chunk_shape: Ints
    dtype: str
    voxel_size_nm: Floats
    translation_nm: Floats

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        return cls(
            index=int(answer["level"]),
            shape=ints(answer["shape"]),
            chunk_shape=ints(answer["chunk_shape"]),
            dtype=str(answer["dtype"]),
            voxel_size_nm=floats(answer["voxel_size_nm"]),
            translation_nm=floats(answer["translation_nm"]),
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a value was read: URL or file, the field inside it, the extractor, the raw value found."""

    origin: str
    where: str
    field: str
    extractor: str
    raw: Any

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        origin, where, field, extractor = (str(answer[k]) for k in ("origin", "where", "field", "extractor"))
        return cls(origin=origin, where=where, field=field, extractor=extractor, raw=answer.get("raw"))


@dataclass(frozen=True, slots=True)
class Field:
    """A value of the record and what it rests on (None where the catalogue kept no claim for it)."""

    value: Any
    evidence: Evidence | None

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        evidence = answer.get("evidence")
        return cls(value=answer["value"], evidence=Evidence.parse(evidence) if evidence else None)


@dataclass(frozen=True, slots=True)
class Check:
    """One validation check of the published version."""

    name: str
    passed: bool
    severity: str
    message: str

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        name, severity, message = (str(answer[key]) for key in ("name", "severity", "message"))
        return cls(name=name, passed=bool(answer["passed"]), severity=severity, message=message)


@dataclass(frozen=True, slots=True)
class Metadata:
    """Everything catalogued about the published version of a dataset.

    `fields` maps a dotted name (`sample.organism`) to its value and evidence, `conflicts` are the server's
    sentences about sources that disagreed, `statistics` are of level 0 in stored values. `document` is the
    whole answer.
    """

    dataset_id: str
    source: str
    version: str
    voxel_size_nm: Floats
    levels: tuple[Level, ...]
    statistics: Mapping[str, Any]
    fields: Mapping[str, Field]
    conflicts: tuple[str, ...]
    checks: tuple[Check, ...]
    document: Mapping[str, Any]

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Self:
        return cls(
            dataset_id=str(answer["dataset_id"]),
            source=str(answer["source"]),
            version=str(answer["version"]),
            voxel_size_nm=floats(answer["voxel_size_nm"]),
            levels=tuple(Level.parse(level) for level in answer["levels"]),
            statistics=dict(answer["statistics"]),
            fields={name: Field.parse(field) for name, field in answer["fields"].items()},
            conflicts=tuple(str(conflict["summary"]) for conflict in answer["conflicts"]),
            checks=tuple(Check.parse(check) for check in answer["checks"]),
            document=answer,
        )

    @property
    def shape(self) -> Ints:
        """Voxels of level 0."""
        return self.levels[0].shape

    @property
    def dtype(self) -> str:
        return self.levels[0].dtype


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A box of one level. `np.asarray(block)` gives `data`.

    `data` is z-y-x, C order, native byte order, its own memory and writable. `start` and `stop` are the box
    in voxels of `level`, half-open. `valid_fraction` is the share of the box's voxels
    that the source holds; `states` counts the chunks it touches by their state in the ledger (`data`,
    `padded`, `fill`, `absent`). Of an absent chunk the source holds nothing: its zeros are no data.
    """

    data: "NDArray[Any]"
    dataset_id: str
    version: str
    level: int
    start: Ints
    stop: Ints
    voxel_size_nm: Floats
    valid_fraction: float
    states: Mapping[str, int]

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Index of this block in a z-y-x array of the whole level."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def __array__(self, dtype: "DTypeLike | None" = None, copy: bool | None = None) -> "NDArray[Any]":
        import numpy as np

        return np.array(self.data, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        box = ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))
        return f"Block({self.dataset_id} level {self.level} [{box}] {self.data.dtype})"


def little_endian(name: str) -> "np.dtype[Any]":
    """The wire's dtype of that name. Raises TypeError or ValueError for what is not a plain number."""
    import numpy as np

    dtype = np.dtype(name)
    if dtype.kind not in "uif" or dtype.name != name:
        raise ValueError(f"{name!r} is not the name of an integer or float dtype")
    return dtype.newbyteorder("<")
