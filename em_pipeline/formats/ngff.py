"""OME-Zarr `multiscales`, versions 0.1 to 0.5: levels, axes, voxel sizes (https://ngff.openmicroscopy.org).

Transformations of a level and of the whole multiscale are composed; versions before 0.4 have none, so they
say nothing of voxel sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.lazy_volume import SAID_LABELS
from em_pipeline.formats.arrays import Calibration, understood

# Before 0.3 there was no choice of axes (https://ngff.openmicroscopy.org/0.2/#multiscale-md).
OLD_AXES = ("t", "c", "z", "y", "x")
READ = ("0.1", "0.2", "0.3", "0.4", "0.5")


@dataclass(frozen=True)
class Multiscale:
    """The first `multiscales` entry of an image. `axes` are None where the version leaves them implied.

    `said_labels` is for the metadata of its levels (`SAID_LABELS`): what says that it is a label image.
    """

    version: str
    axes: tuple[str, ...] | None
    levels: tuple[tuple[str, Calibration | None], ...]
    notes: tuple[str, ...]
    said_labels: Mapping[str, str]

    def axes_of(self, count: int) -> tuple[str, ...]:
        """Names of the `count` stored axes."""
        return self.axes if self.axes is not None else OLD_AXES[-count:]


def read_ngff(key: str, attributes: Mapping[str, Any]) -> Multiscale | None:
    """The image that the attributes found under `key` describe, None where they describe none.

    Raises `UnsupportedFormat` for other versions and for damaged metadata.
    """
    ome = attributes.get("ome")
    holder, prefix = (ome, "ome.") if isinstance(ome, Mapping) else (attributes, "")
    multiscales = holder.get("multiscales")
    if not isinstance(multiscales, list) or not multiscales:
        return None
    with understood(key):
        first = multiscales[0]
        version = str(holder.get("version") or first.get("version") or "0.4")
        if version.partition("-")[0] in READ:
            labels = isinstance(holder.get("image-label"), Mapping)
            said = {SAID_LABELS: f"{key} has {prefix}image-label"} if labels else {}
            return _multiscale(key, f"{prefix}multiscales[0]", first, version, len(multiscales), said)
    raise UnsupportedFormat(
        f"Read the OME-Zarr image of {key}", f"its version is {version}", f"Read are {', '.join(READ)}"
    )


def _multiscale(
    key: str, field: str, found: Mapping[str, Any], version: str, count: int, said_labels: Mapping[str, str]
) -> Multiscale:
    listed = found.get("axes")
    axes = None if listed is None else tuple(_axis_name(axis) for axis in listed)
    units = {_axis_name(axis): axis.get("unit") for axis in listed or () if isinstance(axis, Mapping)}
    common = found.get("coordinateTransformations") or []
    levels = tuple(
        (str(entry["path"]), _calibration(key, f"{field}.datasets[{number}]", entry, common, axes, units))
        for number, entry in enumerate(found["datasets"])
    )
    # "Use the first multiscale as a fallback": https://ngff.openmicroscopy.org/0.4/#multiscale-md.
    notes = (f"{count} multiscales are listed, the first is read",) if count > 1 else ()
    return Multiscale(version, axes, levels, notes, said_labels)


def _calibration(
    key: str, field: str, entry: Mapping[str, Any], common: Sequence[Mapping[str, Any]],
    axes: tuple[str, ...] | None, units: Mapping[str, str | None],
) -> Calibration | None:  # fmt: skip
    steps = [*(entry.get("coordinateTransformations") or []), *common]
    if axes is None or not steps:
        return None
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    for step in steps:
        values = step.get(step["type"])
        if step["type"] == "identity":
            continue
        if step["type"] not in ("scale", "translation") or not isinstance(values, list):
            raise UnsupportedFormat(
                f"Read the position of {entry['path']!r}", f"{key} places it by {step['type']!r}",
                "Written-out scales and translations are read",
            )  # fmt: skip
        if step["type"] == "scale":
            scale = [s * float(v) for s, v in zip(scale, values, strict=True)]
            translation = [t * float(v) for t, v in zip(translation, values, strict=True)]
        else:
            translation = [t + float(v) for t, v in zip(translation, values, strict=True)]
    return Calibration(
        scale=dict(zip(axes, scale, strict=True)), translation=dict(zip(axes, translation, strict=True)),
        units=units, document=key, field=f"{field}.coordinateTransformations", raw=steps,
    )  # fmt: skip


def _axis_name(axis: Any) -> str:
    return str(axis["name"] if isinstance(axis, Mapping) else axis).lower()
