"""`em inspect`: what a file, container, address or dataset holds, without downloading it."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from em_pipeline.cli.output import Json, answering, console, errors, print_json, size, table
from em_pipeline.domain.wording import counted, figure
from em_pipeline.settings import load_settings

if TYPE_CHECKING:
    from em_pipeline.domain.evidence import Claim
    from em_pipeline.formats.headers import ImageHeaders
    from em_pipeline.ingest.inspection import Inspection

# Without --headers: this many, of those that fit on a line.
SHOWN_HEADERS = 14
SHORT = 60
LONG = 160
BYTE_ORDERS = {"<": "little-endian", ">": "big-endian"}


def inspect(
    target: Annotated[
        str, typer.Argument(metavar="PATH|URL|ID", help="A file, folder, address or dataset id.")
    ],
    headers: Annotated[bool, typer.Option("--headers", help="Print all headers, whole.")] = False,
    as_json: Json = False,
) -> None:
    """Show shape, voxel size, chunks, encoding and headers without downloading the data.

    Of any address at most 2 MB are read, in at most 20 requests. A dataset id is asked for at its portal.
    """
    with answering(as_json):
        from em_pipeline.ingest.inspection import inspect as inspect_target
        from em_pipeline.ingest.inspection import policy_for_a_look
        from em_pipeline.ingest.inspection_target import address_of, stated_size
        from em_pipeline.storage.object_urls import endpoints_of

        settings = load_settings().settings
        policy = policy_for_a_look(
            read_timeout_s=settings.download_timeout_s,
            retries=settings.download_retries,
            endpoints=endpoints_of(settings),
        )
        where = address_of(target, settings)
        found = inspect_target(where.address, policy, errors.print)
        stated = stated_size(where.claims)
        notes = [note for note in (where.note, *of_record(stated)) if note]
        if as_json:
            print_json(document(found, notes))
        else:
            _print(found, notes, stated, every_header=headers)


def document(found: "Inspection", notes: list[str]) -> dict[str, Any]:
    """The JSON answer: axes z-y-x, lengths in nm, None for what is not known."""
    from pydantic_core import to_jsonable_python

    from em_pipeline.ingest.inspection import voxel_size_of

    return {
        "target": found.target,
        "kind": found.kind,
        "size_bytes": found.size,
        "images": [
            {
                "name": image.name,
                "shape": list(image.shape),
                "dtype": image.dtype,
                "voxel_size_nm": list(voxel_size_of(image)),
                "translation_nm": list(image.translation_nm),
                "axes": list(image.axes),
                "chunk_shape": list(image.chunk_shape) if image.chunk_shape else None,
                "compression": image.compression or None,
                "byte_order": BYTE_ORDERS.get(image.byte_order or ""),
                "format": image.file_format,
                "notes": list(image.notes),
                "evidence": to_jsonable_python(image.claims),
                "headers": image.metadata,
            }
            for image in found.images
        ],
        "labels": list(found.labels),
        "notes": [*notes, *found.notes],
        "bytes_read": found.bytes_read,
        "requests": found.requests,
    }


def of_record(stated: "Mapping[str, Claim]") -> Iterator[str]:
    """What spec and portal say of the voxel size, which headers may not."""
    if stated:
        sizes = "×".join(figure(claim.value) for claim in stated.values())
        where = ", ".join(dict.fromkeys(claim.evidence.where for claim in stated.values()))
        yield f"its dataset's voxels are {sizes} nm ({', '.join(stated)}), says {where}"


def _print(
    found: "Inspection", notes: list[str], stated: "Mapping[str, Claim]", *, every_header: bool
) -> None:
    of_size = f", {size(found.size)}" if found.size is not None else ""
    console.print(f"[bold]{escape(found.target)}[/]  {escape(found.kind)}{of_size}", soft_wrap=True)
    if found.images:
        _print_images(found.images)
        print_evidence(found.images[0], stated)
    if found.labels:
        console.print(f"[bold]Label images[/]  {escape(', '.join(found.labels))}")
    for note in dict.fromkeys(
        [*notes, *found.notes, *(note for image in found.images for note in image.notes)]
    ):
        console.print(f"[yellow]•[/] {escape(note)}", soft_wrap=True)
    if found.images:
        console.print()
        _print_headers(found.images[0], every_header=every_header)
    of = f" of {size(found.size)}" if found.size is not None else ""
    console.print(f"[dim]Read {found.bytes_read:,} bytes{of} in {counted(found.requests, 'request')}.[/]")


def _print_images(images: "tuple[ImageHeaders, ...]") -> None:

    from em_pipeline.ingest.inspection import voxel_size_of

    rows = [
        [
            image.name,
            _lengths(image.shape),
            image.dtype,
            _lengths(voxel_size_of(image)),
            _lengths(image.chunk_shape or ()),
            image.compression,
            BYTE_ORDERS.get(image.byte_order or "", "").removesuffix("-endian"),
            ",".join(image.axes),
        ]
        for image in images
    ]
    columns = ["name", "shape z×y×x", "dtype", "voxel nm", "chunks", "encoding", "bytes", "axes"]
    kept = [n for n, _ in enumerate(columns) if any(row[n] for row in rows)]
    table(
        "",
        [columns[n] for n in kept],
        [[row[n] for n in kept] for row in rows],
        whole={"shape z×y×x", "voxel nm"},
    )


def print_evidence(image: "ImageHeaders", stated: "Mapping[str, Claim]") -> None:
    """Where each voxel size was read, a line for each entry; axes that are `stated` need none."""
    said: dict[str, str] = {}
    for axis in "zyx":
        claim = next((c for c in image.claims if c.field == f"core.voxel_size_nm.{axis}"), None)
        if claim is not None:
            where = f"{claim.evidence.field}{_raw(claim)}"
            said[where] = said.get(where, "") + axis
    for where, axes in said.items():
        console.print(f"voxel size along {', '.join(axes)} from [dim]{escape(where)}[/]", soft_wrap=True)
    missing = [axis for axis in "zyx" if axis not in {*"".join(said.values()), *stated}]
    if missing:
        note = f"nothing says the voxel size along {', '.join(missing)}: ingest it with --voxel-size"
        console.print(f"[yellow]•[/] {note}", soft_wrap=True)


def _raw(claim: "Claim") -> str:
    raw = claim.evidence.raw
    text = "" if raw is None else f" = {json.dumps(raw, ensure_ascii=False)}"
    return text if len(text) <= LONG else f"{text[:LONG]}…"


def _print_headers(image: "ImageHeaders", *, every_header: bool) -> None:
    lines = [(name, value) for name, value in _leaves(image.metadata) if value not in (None, "", [])]
    shown = lines
    if not every_header:
        shown = [(name, value) for name, value in lines if len(str(value)) <= SHORT][:SHOWN_HEADERS]
    table("Headers", ["field", "value"], shown)
    if len(shown) < len(lines):
        console.print(f"[dim]… and {len(lines) - len(shown)} more with --headers[/]")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def _lengths(values: Any) -> str:
    values = tuple(values)
    if all(value is None for value in values):
        return ""
    return "×".join("?" if v is None else figure(v) if isinstance(v, float) else str(v) for v in values)
