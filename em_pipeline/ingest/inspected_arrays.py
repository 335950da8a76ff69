"""What the documents of array containers say: OME-Zarr, zarr, N5, precomputed, DVID."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from em_pipeline.domain.errors import NotFound, UnsupportedFormat
from em_pipeline.formats.arrays import ArrayLayout, Fetch
from em_pipeline.formats.base import ClaimSheet
from em_pipeline.formats.headers import ImageHeaders
from em_pipeline.formats.multiscale import list_labels, read_multiscale
from em_pipeline.formats.sparing import Sparing

BYTE_ORDERS = {"<": "<", ">": ">"}
COLLECTION = "bioformats2raw.layout"


@dataclass(frozen=True)
class Arrays:
    """Levels of an image, finest first as listed, and the names of its label images."""

    kind: str
    images: tuple[ImageHeaders, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def zarr_or_n5(fetch: Fetch, path: str, images: Sequence[str] = ()) -> Arrays:
    """The image at `path` of a zarr or N5 container, local or remote; the whole image where that is a level.

    A collection as bioformats2raw writes it (https://ngff.openmicroscopy.org/0.4/#bf2raw) is its image 0.
    `images` are all of a container on this machine: the only one below `path` is meant, as by an ingest.
    Raises `NotFound`, naming the container's images: `images`, and those that its documents tell;
    `UnsupportedFormat`.
    """
    documents = Sparing(fetch)
    documents.consolidate()
    notes: tuple[str, ...] = ()
    try:
        levels = read_multiscale(documents.fetch, path)
    except NotFound as error:
        if _is_collection(documents, path):
            path, note = f"{path}/0".lstrip("/"), "a collection of images; this is image 0"
        else:
            below = [image for image in images if image.startswith(f"{path}/".lstrip("/"))]
            if len(below) != 1:
                there = ", ".join(sorted({*images, *documents.images}))
                raise NotFound(
                    error.tried, error.found, f"Images in it: {there}" if there else error.to_do
                ) from error
            path, note = below[0], f"this is {below[0]}, the only image in it"
        levels = read_multiscale(documents.fetch, path)
        notes = (note,)
    if levels[0].path == path and (whole := _siblings(documents, path)):
        notes = (f"{levels[0].name} is a level of this image",)
        path, levels = path.rpartition("/")[0], whole
    kind = str(levels[0].array.file_format)
    labels = () if levels[0].array.driver == "n5" else list_labels(documents.fetch, path)
    return Arrays(kind, tuple(map(_level, levels)), labels, notes)


def precomputed_images(fetch: Fetch) -> Arrays:
    """The scales of a precomputed volume. Raises `NotFound` where there is no `info`, `UnsupportedFormat`."""
    from em_pipeline.formats.precomputed import claims_of
    from em_pipeline.formats.precomputed_info import parse_info

    data = fetch("info")
    if data is None:
        raise NotFound("Read a precomputed volume", "there is no `info`", "Give the folder that holds it")
    info = parse_info(data, "info")
    images = tuple(
        ImageHeaders(
            file_format="precomputed",
            shape=scale.shape,
            dtype=scale.dtype.name,
            chunk_shape=scale.chunk,
            compression=scale.encoding,
            byte_order="<",
            claims=claims_of(info, scale, Path("info")),
            metadata={**info.document["scales"][scale.index], **info.said_labels},
            notes=("sharded",) if scale.sharding else (),
            name=scale.key,
            translation_nm=scale.translation_nm,
        )
        for scale in info.scales
    )
    return Arrays(f"precomputed {info.kind or 'volume'}", images)


def dvid_image(fetch: Fetch) -> Arrays:
    """A DVID instance by its `info`. Raises `NotFound`, `UnsupportedFormat`."""
    from em_pipeline.formats.dvid import parse_instance

    data = fetch("info")
    if data is None:
        raise NotFound("Read a DVID instance", "it has no `info`", "Give /api/node/<uuid>/<instance>")
    instance = parse_instance(data, "info")
    image = ImageHeaders(
        file_format="DVID",
        shape=instance.shape,
        dtype=instance.dtype.name,
        chunk_shape=instance.block,
        compression="",
        byte_order=None,
        claims=instance.claims(ClaimSheet(Path("info"), "formats.dvid")),
        metadata=dict(instance.document),
        name=instance.type_name,
    )
    return Arrays(f"DVID {instance.type_name}", (image,))


def _level(layout: ArrayLayout) -> ImageHeaders:
    array = layout.array
    metadata = dict(layout.metadata)
    notes = metadata.pop("notes", ())
    shards = (f"shards of {'×'.join(map(str, array.stored))}",) if array.stored != array.chunk else ()
    return ImageHeaders(
        file_format=array.file_format,
        shape=layout.shape,
        dtype=layout.dtype.name,
        chunk_shape=layout.chunk_shape,
        compression=array.compression,
        byte_order=BYTE_ORDERS.get(array.dtype.byteorder),
        claims=layout.claims,
        metadata={**metadata, "document": json.loads(layout.documents[array.document])},
        notes=(*notes, *shards),
        name=layout.name,
        axes=layout.axes,
        translation_nm=layout.translation_nm,
    )


def _siblings(documents: Sparing, path: str) -> tuple[ArrayLayout, ...]:
    """All levels of the image that the array at `path` is one of; none where it is alone."""
    parent = path.rpartition("/")[0]
    try:
        levels = read_multiscale(documents.fetch, parent) if parent else ()
    except (NotFound, UnsupportedFormat):
        return ()
    return levels if any(level.path == path for level in levels) else ()


def _is_collection(documents: Sparing, path: str) -> bool:
    for name in ("zarr.json", ".zattrs"):
        data = documents.fetch(f"{path}/{name}".lstrip("/"))
        if data is not None and COLLECTION in data.decode(errors="replace"):
            return True
    return False
