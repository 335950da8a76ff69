"""The collection side by side: how each volume is stored and was imaged, and what its sources disagree on.

Columns are checked by pandera before anyone sees them. Lengths are nanometres, axes z, y, x.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from em_pipeline.domain.errors import RecordInvalid
from em_pipeline.domain.evidence import Conflict
from em_pipeline.domain.identity import DATASET_ID
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.formats.units import spelled

if TYPE_CHECKING:
    import pandas as pd
    from pandera.pandas import DataFrameSchema

Values = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column. `kind` is pandas' nullable type; `value` takes it from a record's values.

    `fields` are the record fields it rests on: a conflict over one of them marks the cell. Numbers are at
    least `least`, or above it where `above`.
    """

    name: str
    kind: str
    value: Callable[[Values], Any]
    fields: tuple[str, ...]
    least: float | None = None
    above: bool = False


def _field(
    name: str, field: str, kind: str = "string", least: float | None = None, *, above: bool = False
) -> Column:
    return Column(name, kind, lambda values: values.get(field), (field,), least, above)


def _per_axis(name: str, field: str, kind: str, least: float, *, above: bool = False) -> tuple[Column, ...]:
    """Columns `name` with `{}` replaced by z, y and x."""
    return tuple(_field(name.format(axis), f"{field}.{axis}", kind, least, above=above) for axis in "zyx")


VOXEL_SIZE = tuple(f"core.voxel_size_nm.{axis}" for axis in "zyx")
# Axes that are those of a volume once a single channel is left out: each of z, y, x in any order, and c.
WITH_CHANNELS = frozenset("".join(order) for order in permutations("czyx"))
SPECIMEN = ("sample.cell_type", "sample.tissue", "sample.organism")


def _isotropic(values: Values) -> bool | None:
    sizes = {values.get(field) for field in VOXEL_SIZE}
    return None if None in sizes else len(sizes) == 1


def _specimen(values: Values) -> str | None:
    return ", ".join(str(values[field]) for field in SPECIMEN if values.get(field)) or None


def _axes(values: Values) -> str | None:
    """The source's axes, but for a channel axis with a single channel."""
    axes = values.get("core.axes")
    return axes.replace("c", "") if axes in WITH_CHANNELS and values.get("core.channels") == 1 else axes


def _unit(values: Values) -> str | None:
    unit = values.get("core.unit")
    return None if unit is None else spelled(str(unit))


VOLUMES = (
    _field("title", "core.title"),
    _field("format", "technical.file_format"),
    _field("modality", "core.modality"),
    Column("specimen", "string", _specimen, SPECIMEN),
    _field("dtype", "core.data_type"),
    Column("unit", "string", _unit, ("core.unit",)),
    *_per_axis("voxel_size_{}_nm", "core.voxel_size_nm", "Float64", 0, above=True),
    Column("isotropic", "boolean", _isotropic, VOXEL_SIZE),
    _field("channels", "core.channels", "Int64", 1),
    *_per_axis("shape_{}", "core.volume_shape", "Int64", 1),
    *_per_axis("offset_{}", "core.offset", "Int64", 0),
    Column("axes", "string", _axes, ("core.axes",)),
    *_per_axis("source_chunk_{}", "technical.chunk_size", "Int64", 1),
    _field("source_url", "provenance.download_url"),
)
ACQUISITION = (
    _field("microscope", "acquisition.microscope"),
    _field("voltage_kv", "acquisition.accelerating_voltage_kv", "Float64", 0, above=True),
    _field("current_pa", "acquisition.beam_current_pa", "Float64", 0, above=True),
    _field("dwell_time_us", "acquisition.dwell_time_us", "Float64", 0, above=True),
    _field("scan_rate_mhz", "acquisition.scan_rate_mhz", "Float64", 0, above=True),
    _field("magnification", "acquisition.magnification", "Float64", 0, above=True),
    _field("bias_v", "acquisition.bias_v", "Float64"),
    _field("duration_days", "acquisition.duration_days", "Float64", 0, above=True),
    _field("start_date", "core.imaging_start_date"),
)
# What people are shown: heading → columns whose cells are put together.
SHOWN_VOLUMES = {
    "dtype": ("dtype",),
    "unit": ("unit",),
    "voxel size nm": ("voxel_size_z_nm", "voxel_size_y_nm", "voxel_size_x_nm"),
    "channels": ("channels",),
    "shape": ("shape_z", "shape_y", "shape_x"),
    "offset": ("offset_z", "offset_y", "offset_x"),
    "axes": ("axes",),
}
SHOWN_ACQUISITION = {
    "microscope": ("microscope",),
    "kV": ("voltage_kv",),
    "pA": ("current_pa",),
    "dwell µs": ("dwell_time_us",),
    "scan MHz": ("scan_rate_mhz",),
    "magnification": ("magnification",),
    "bias V": ("bias_v",),
    "days": ("duration_days",),
    "start": ("start_date",),
}
CONFLICTS = (
    "dataset",
    "field",
    "kept",
    "kept_origin",
    "kept_from",
    "rejected",
    "rejected_origin",
    "rejected_from",
)


@dataclass(frozen=True)
class Comparison:
    """Checked tables, one row per dataset in the order of their ids; in `conflicts`, one per conflict."""

    volumes: "pd.DataFrame"
    acquisition: "pd.DataFrame"
    conflicts: "pd.DataFrame"

    def disputed(self, dataset_id: str, columns: Sequence[str]) -> bool:
        """Whether a conflict is about one of these columns of the dataset."""
        fields = {field for one in (*VOLUMES, *ACQUISITION) if one.name in columns for field in one.fields}
        rows = self.conflicts[self.conflicts["dataset"] == dataset_id]
        return bool(rows["field"].isin(list(fields)).any())


def comparison(records: Iterable[DatasetRecord]) -> Comparison:
    """The tables of these records. Raises `RecordInvalid` for a value that cannot be one of its column."""
    import pandas as pd

    ordered = sorted(records, key=lambda record: record.dataset_id)
    conflicts = [_conflict(record.dataset_id, one) for record in ordered for one in record.conflicts]
    return Comparison(
        volumes=_checked(ordered, VOLUMES),
        acquisition=_checked(ordered, ACQUISITION),
        conflicts=pd.DataFrame(conflicts, columns=list(CONFLICTS), dtype="string"),
    )


def schema(columns: Sequence[Column]) -> "DataFrameSchema":
    """What a table of these columns, led by the dataset's id, must be."""
    import pandera.pandas as pa

    def checks(column: Column) -> list[Any]:
        if column.least is None:
            return []
        return [pa.Check.gt(column.least) if column.above else pa.Check.ge(column.least)]

    ids = pa.Column("string", pa.Check.str_matches(DATASET_ID.pattern), unique=True)
    rest = {one.name: pa.Column(one.kind, checks(one), nullable=True) for one in columns}
    return pa.DataFrameSchema({"dataset": ids, **rest}, strict=True, ordered=True)


def _checked(records: Sequence[DatasetRecord], columns: Sequence[Column]) -> "pd.DataFrame":
    import pandas as pd
    from pandera.errors import SchemaError

    values = [record.values() for record in records]
    frame = pd.DataFrame({"dataset": pd.array([one.dataset_id for one in records], dtype="string")})
    for column in columns:
        cells = [_cell(column, one) for one in values]
        frame[column.name] = pd.array(cells, dtype=column.kind)  # type: ignore[call-overload]
    try:
        return schema(columns).validate(frame)
    except SchemaError as error:
        raise RecordInvalid(
            "Compare the datasets",
            f"{getattr(error.schema, 'name', None)}: {error}".replace("\n", " "),
            "Correct the dataset's record with an override in its spec",
        ) from error


def _cell(column: Column, values: Values) -> Any:
    value = column.value(values)
    return str(value) if value is not None and column.kind == "string" else value


def _conflict(dataset_id: str, conflict: Conflict) -> dict[str, str]:
    kept, rejected = conflict.kept, conflict.rejected
    return {
        "dataset": dataset_id,
        "field": conflict.field,
        "kept": str(kept.value),
        "kept_origin": str(kept.evidence.origin),
        "kept_from": kept.evidence.where,
        "rejected": str(rejected.value),
        "rejected_origin": str(rejected.evidence.origin),
        "rejected_from": rejected.evidence.where,
    }
