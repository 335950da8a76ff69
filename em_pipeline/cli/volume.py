"""`em verify`, `em block`: the bytes of a published volume."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_pipeline.cli.bars import Bars
from em_pipeline.cli.output import DatasetId, Json, answering, console, errors, print_json
from em_pipeline.domain.errors import ChunkCorrupt, InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.wording import counted
from em_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from em_pipeline.catalog.entries import PublishedVersion
    from em_pipeline.storage.store import Store
    from em_pipeline.volumes.reader import Block
    from em_pipeline.volumes.verify import Fault, VerifyResult

BLOCK = Shape(128, 128, 128)
SHOWN_FAULTS = 50


def verify(
    dataset_id: DatasetId,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every chunk.")] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Delete a damaged volume, for `em ingest` to write it again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every stored chunk, of label images too, with the ledger. Exits 5 where one differs."""
    with answering(as_json):
        from em_pipeline.ingest.workspace import store_of

        settings = load_settings().settings
        store = store_of(settings)
        published = _published(settings, dataset_id)
        _refuse_discarded(store, published)
        results = _verified(settings, store, published, decode)
        faults = [(image, fault) for image, result in results.items() for fault in result.faults]
        faults += [("", fault) for fault in _beside(store, published)]
        chunks = sum(result.chunks for result in results.values())
        read = sum(result.bytes for result in results.values())
        seconds = sum(result.seconds for result in results.values())
        discarded = bool(faults) and discard
        if discarded:
            _discard(settings, store, published)
        if as_json:
            document = {"dataset_id": dataset_id, "chunks": chunks, "bytes": read, "seconds": seconds}
            found = [_fault_document(*one) for one in faults]
            print_json(document | {"faults": found, "discarded": discarded})
        else:
            lines = _fault_lines(faults)
            for line in lines[:SHOWN_FAULTS]:
                console.print(line, markup=False)
            if len(lines) > SHOWN_FAULTS:
                console.print(f"… and {len(lines) - SHOWN_FAULTS:,} more")
            if faults:
                console.print(f"→ {_remedy(store, published, discarded)}", markup=False)
            # In less time what is measured is mostly the start.
            rate = f" at {read / 1e6 / seconds:.0f} MB/s" if seconds >= 1 else ""
            decoded = "read and decoded" if decode else "read but not decoded"
            console.print(
                f"{dataset_id}: {counted(chunks, 'chunk')}, {counted(read, 'byte')} {decoded}{rate}, "
                f"{counted(len(faults), 'fault')}"
            )
        if faults:
            raise typer.Exit(ChunkCorrupt.exit_code)


def _refuse_discarded(store: "Store", published: "PublishedVersion") -> None:
    if not store.exists(published.volume_key):
        raise ChunkCorrupt(
            f"Verify the volume of {published.dataset_id}",
            f"{store.blobs(published.volume_key).url} is not there: it was discarded, or lost",
            f"Run `em ingest {published.dataset_id}`: it writes the same bytes again",
        )


def _discard(settings: Settings, store: "Store", published: "PublishedVersion") -> None:
    from em_pipeline.ingest.damage import discard
    from em_pipeline.ingest.workspace import open_catalog

    with open_catalog(settings) as catalog:
        discard(catalog, store, published)


def _fault_lines(faults: "Sequence[tuple[str, Fault]]") -> list[str]:
    """A line for each fault, but one for all the chunks of a shard that is missing."""
    from em_pipeline.volumes.verify import FaultKind

    missing = Counter((image, f.shard) for image, f in faults if f.kind is FaultKind.MISSING_SHARD)
    lines = []
    for image, fault in faults:
        line = str(fault)
        if fault.kind is FaultKind.MISSING_SHARD:
            held = counted(missing[image, fault.shard], "chunk")
            line = f"{fault.kind}: shard {fault.shard} is missing, which held {held}"
        lines.append(f"{image}: {line}" if image else line)
    return list(dict.fromkeys(lines))


def _remedy(store: "Store", published: "PublishedVersion", discarded: bool) -> str:
    where, dataset_id = store.blobs(published.volume_key).url, published.dataset_id
    if discarded:
        return f"{where} is deleted; run `em ingest {dataset_id}`: it writes the same bytes again"
    return (
        f"Run `em verify {dataset_id} --discard`, which deletes {where}, and then `em ingest {dataset_id}`: "
        "it writes the same bytes again"
    )


def _beside(store: "Store", published: "PublishedVersion") -> "list[Fault]":
    from em_pipeline.ingest.damage import damaged_documents
    from em_pipeline.volumes.verify import Fault, FaultKind

    return [
        Fault(None, None, None, FaultKind.DOCUMENT, f"{key} is missing or damaged")
        for key in damaged_documents(store, published)
    ]


def _verified(
    settings: Settings, store: "Store", published: "PublishedVersion", decode: bool
) -> "dict[str, VerifyResult]":
    """What verifying found of the image (under \"\") and of each label image (under its path below it)."""
    from em_pipeline.ingest.versions import image_files
    from em_pipeline.volumes.verify import verify_decoded, verify_stored

    check = verify_decoded if decode else verify_stored
    images = {"": published} | {f"labels/{label.folder}": label for label in published.labels}
    with Bars(errors) as progress:
        return {
            place: check(
                *image_files(store, image.volume_key, image.ledger_key),
                ledger_sha256=image.ledger_sha256,
                threads=settings.threads,
                progress=progress,
            )
            for place, image in images.items()
        }


def _fault_document(image: str, fault: "Fault") -> dict[str, Any]:
    return {
        "image": image,
        "level": fault.level,
        "chunk": fault.chunk,
        "shard": str(fault.shard),
        "kind": str(fault.kind),
        "message": fault.message,
    }


def block(
    dataset_id: DatasetId,
    z: Annotated[int, typer.Argument(help="First voxel along z.")],
    y: Annotated[int, typer.Argument(help="First voxel along y.")],
    x: Annotated[int, typer.Argument(help="First voxel along x.")],
    level: Annotated[int, typer.Option(help="Pyramid level.")] = 0,
    label: Annotated[str | None, typer.Option(help="Read this label image; `em show` lists them.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the block to FILE.npy, or its middle plane to FILE.png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the block of 128³ voxels that begins at voxel Z Y X (clipped at the volume's edge)."""
    with answering(as_json):
        if out is not None and out.suffix not in (".npy", ".png"):
            raise InputRefused(
                f"Write the block to {out}",
                f"{out.suffix or 'no suffix'} is not a block format",
                "Use .npy or .png",
            )
        read = _read(load_settings().settings, dataset_id, level, (z, y, x), label)
        if out is not None:
            _write(read.data, out)
        held = read.data if read.absent is None else read.data[~read.absent]
        summary = {
            "dataset_id": dataset_id,
            "label": label,
            "level": level,
            "start": list(read.box.start),
            "shape": list(read.data.shape),
            "dtype": read.data.dtype.name,
            "valid_fraction": read.valid_fraction,
            "states": {str(state): n for state, n in Counter(read.states.values()).items()},
            "min": held.min().item() if held.size else None,
            "max": held.max().item() if held.size else None,
            "mean": float(held.mean()) if held.size else None,
            "out": str(out) if out else None,
        }
        if as_json:
            print_json(summary)
        else:
            for name, value in summary.items():
                console.print(f"{name:>15}  {value}", markup=False)
            if read.absent is not None:
                console.print(
                    f"{read.absent.sum()} of its voxels are absent at the source: their zeros are no data"
                )


def _read(
    settings: Settings, dataset_id: str, level: int, start: tuple[int, int, int], label: str | None
) -> "Block":
    from em_pipeline.api.readers import open_published
    from em_pipeline.ingest.workspace import store_of

    published = _published(settings, dataset_id)
    published = published if label is None else published.label(label)
    if min(start) < 0:
        raise InputRefused(f"Read a block at {start} (z, y, x)", "a voxel index is negative", "Count from 0")
    with open_published(store_of(settings), published) as reader:
        if not 0 <= level < len(reader.levels):
            raise NotFound(
                f"Read level {level} of {dataset_id}", f"it has levels 0 to {len(reader.levels) - 1}", ""
            )
        shape = reader.levels[level].shape
        box = BoundingBox.at(start, BLOCK).clipped(shape)
        if box is None:
            raise InputRefused(
                f"Read a block at {start} (z, y, x) of level {level}",
                f"the level is {tuple(shape)}",
                "Choose a voxel inside it",
            )
        return reader.read_block(level, box)


def _published(settings: Settings, dataset_id: str) -> "PublishedVersion":
    from em_pipeline.ingest.specs import dataset_detail
    from em_pipeline.ingest.workspace import open_catalog

    with open_catalog(settings) as catalog:
        published = catalog.published_version(dataset_id)
        if published is None:
            status = dataset_detail(catalog, dataset_id).summary.status
            raise NotFound(
                f"Find the published volume of {dataset_id}",
                f"none is published (status {status})",
                f"Run `em ingest {dataset_id}`",
            )
    return published


def _write(data: Any, out: Path) -> None:
    import numpy as np

    buffer = io.BytesIO()
    if out.suffix == ".npy":
        np.save(buffer, data)
    else:
        from PIL import Image

        plane = data[data.shape[0] // 2].astype(np.float64)
        low, high = np.percentile(plane, (1, 99))
        scaled = np.clip((plane - low) / max(high - low, 1e-12), 0, 1) * 255
        Image.fromarray(scaled.astype(np.uint8)).save(buffer, format="PNG")
    try:
        out.write_bytes(buffer.getvalue())
    except OSError as error:
        raise InputRefused(
            f"Write {out}", error.strerror or str(error), "Name a folder that exists"
        ) from error
