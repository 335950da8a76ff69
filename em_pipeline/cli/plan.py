"""`em plan`: what an ingest would take, before it writes anything."""

from typing import TYPE_CHECKING, Any

from em_pipeline.cli.bars import Bars
from em_pipeline.cli.options import Options, taking_options
from em_pipeline.cli.output import answering, by_axis, console, errors, print_json, size, table
from em_pipeline.domain.wording import counted
from em_pipeline.settings import load_settings
from em_pipeline.storage.object_urls import is_object

if TYPE_CHECKING:
    from em_pipeline.ingest.planning import Outlook
    from em_pipeline.volumes.plan_report import PlanReport

NOT_KNOWN = "not known before download"
_KEPT = {"image": "kept as intensities", "labels": "kept as labels"}


@taking_options
def plan(target: str, options: Options, as_json: bool) -> None:
    """Show what `em ingest` of the same would read, write, hold and take, level by level.

    Nothing is written and no voxel is downloaded: of files on this machine some chunks are read and encoded,
    of others only headers are.
    """
    with answering(as_json):
        said = options()
        from em_pipeline.ingest.asked import spec_of
        from em_pipeline.ingest.planning import outlook
        from em_pipeline.ingest.specs import known_specs
        from em_pipeline.ingest.workspace import open_workspace

        with Bars(errors) as bars, open_workspace(load_settings().settings, bars) as workspace:
            spec = spec_of(target, said, known_specs(workspace.catalog), workspace.sources)
            found = outlook(workspace, spec)
        if as_json:
            print_json(document(found))
        else:
            _print(found)


def document(found: "Outlook") -> dict[str, Any]:
    """The JSON answer: axes z-y-x, bytes, seconds, None for what is not known."""
    return {
        "dataset_id": found.dataset_id,
        "memory_budget": found.memory_budget,
        "images": [
            {
                **vars(image),
                "name": name,
                "amplification": image.amplification,
                "ratio": image.sample.ratio if image.sample else None,
            }
            for name, image in found.images
        ],
        "notes": list(found.notes),
    }


def _print(found: "Outlook") -> None:
    console.print(f"[bold]{found.dataset_id}[/]")
    for name, image in found.images:
        _print_levels(name, image)
        _print_totals(image, found)
    for note in dict.fromkeys(found.notes):
        console.print(f"• {note}", markup=False, soft_wrap=True)


def _print_levels(name: str, image: "PlanReport") -> None:
    rows = [
        [
            level.index,
            by_axis(level.shape),
            by_axis(list(level.voxel_size)),
            level.halved or "-",
            level.chunks,
            level.shards,
            level.units,
            by_axis(level.slab_shape),
            level.slabs_held,
        ]
        for level in image.levels
    ]
    console.print()
    table(
        f"{name}: {_KEPT[image.kind]}, {image.dtype}, {image.codec}",
        ["level", "shape z×y×x", "voxel nm", "halved", "chunks", "shards", "units", "read at once", "held"],
        rows,
        whole={"shape z×y×x", "voxel nm", "read at once"},
    )
    console.print(
        "  read at once: the box of voxels that is read and encoded as one; held: how many of these are "
        "in memory",
        soft_wrap=True,
    )


def _print_totals(image: "PlanReport", found: "Outlook") -> None:
    from em_pipeline.volumes.cost import PART_BYTES

    sample, requests = image.sample, image.requests
    written = seconds = NOT_KNOWN
    if sample is not None and image.write_bytes is not None and image.seconds is not None:
        sampled = counted(sample.chunks, "sampled chunk")
        written = f"about {size(image.write_bytes)}: {sampled} took {sample.ratio:.0%}"
        seconds = (
            f"{_time(image.seconds)} where {_keeping_up(found.store)}, from the sample: on "
            f"{counted(sample.threads, 'thread')} {size(round(sample.read_rate))}/s decoded, "
            f"{size(round(sample.encode_rate))}/s encoded"
        )
    sent = (
        f"{requests.put + requests.upload + requests.part:,} to write (parts of {size(PART_BYTES)}), "
        f"{requests.get:,} to read, {requests.copy + requests.list + requests.delete:,} to publish "
        "and clear away, if source and volume lie in an object store"
    )
    rows = [
        ("read", f"{size(image.read_bytes)} decoded, {image.amplification:.2f} times the voxels wanted"),
        ("write", written),
        ("requests", sent),
        ("scratch", f"{size(image.scratch_bytes)} at most, beside the volume while it is written"),
        ("memory", f"{size(image.process_bytes)} at most, of {size(found.memory_budget)} (EM_MEMORY_BUDGET)"),
        ("restart", f"repeats at most {size(image.unit_bytes)} of voxels for each unit under way"),
        ("threads", f"{image.threads}{image.fewer_threads}"),
        ("time", seconds),
    ]
    for label, text in rows:
        console.print(f"  {label:9}{text}", markup=False, soft_wrap=True)


def _time(seconds: float) -> str:
    return "less than 1 s" if seconds < 1 else f"about {seconds:.0f} s"


def _keeping_up(store: str) -> str:
    """What the time, which is the cores' alone, takes for granted of where the volume will lie."""
    if is_object(store):
        return "the bucket keeps up (neither its requests nor the network are counted: docs/costs.md)"
    return "the disk keeps up"
