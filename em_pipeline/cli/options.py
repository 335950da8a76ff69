"""What `em ingest`, `em register` and `em plan` take besides the target."""

from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_pipeline.cli.output import Json
from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.domain.spec import CODECS

if TYPE_CHECKING:
    from em_pipeline.ingest.asked import Asked

FROM_FILE = "file"

Target = Annotated[str, typer.Argument(metavar="ID|PATH|URL", help="A dataset id, a path or a URL.")]
VoxelSizeOption = Annotated[
    str | None,
    typer.Option(
        "--voxel-size",
        metavar="Z,Y,X",
        help="Nanometres; an empty part is taken from the file (50,,), one number is all three. "
        "It is kept for later runs; `file` takes it back.",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(help="Name of a dataset made from a path or URL, or of a part of a portal's dataset."),
]
IncludeOption = Annotated[
    list[str] | None, typer.Option("--include", help="Only files whose name matches this glob; repeatable.")
]
LevelOption = Annotated[
    str | None, typer.Option("--level", help="Pyramid level, by number or name (s4). Without: the finest.")
]
RoiOption = Annotated[
    str | None,
    typer.Option(
        "--roi",
        metavar="z0:z1,y0:y1,x0:x1",
        help="Only this box, half-open, in voxels of the level.",
    ),
]
RandomCropOption = Annotated[
    str | None,
    typer.Option("--random-crop", metavar="Z,Y,X", help="Only a box of this size, drawn with --seed."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Decides where --random-crop lies: the same seed, the same box.")
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", help="A segmentation to take along, as the portal names it; repeatable."),
]
ImageSetOption = Annotated[
    str | None,
    typer.Option("--image-set", help="Which of several image sets of an entry, by number or exact name."),
]
KindOption = Annotated[
    Kind | None,
    typer.Option(
        "--kind",
        help="What the voxels are: grey values, or ids, of which coarser levels keep the most frequent. "
        "Without: what the source says.",
    ),
]
RawShapeOption = Annotated[
    str | None,
    typer.Option("--raw-shape", metavar="Z,Y,X", help="Voxels of a file without a header."),
]
RawDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--raw-dtype", metavar="DTYPE", help="Type of such voxels: uint8, or >u2 where byte order counts."
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="NAME",
        help=f"How chunks of the image are compressed: {', '.join(CODECS)}; `none` holds for label images "
        "too. Without: what suits the type. It is kept for later runs; `auto` takes it back.",
    ),
]


Options = Callable[[], "Asked"]


def taking_options(command: Callable[[str, Options, bool], None]) -> Callable[..., None]:
    """A command that takes a target, the options of `asked` and `--json`, as typer reads them.

    `command` is called with the target, with what reads the options and may refuse them, and with whether to
    answer in JSON.
    """

    def run(target: str, as_json: bool, **given: Any) -> None:
        command(target, partial(asked, **given), as_json)

    place = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        Parameter("target", place, annotation=Target),
        *(option.replace(kind=place) for option in signature(asked).parameters.values()),
        Parameter("as_json", place, annotation=Json, default=False),
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def asked(
    *,
    level: LevelOption = None,
    roi: RoiOption = None,
    random_crop: RandomCropOption = None,
    seed: SeedOption = None,
    label: LabelOption = None,
    image_set: ImageSetOption = None,
    kind: KindOption = None,
    raw_shape: RawShapeOption = None,
    raw_dtype: RawDtypeOption = None,
    codec: CodecOption = None,
    voxel_size: VoxelSizeOption = None,
    name: NameOption = None,
    include: IncludeOption = None,
) -> "Asked":
    """The options, read. Raises `InputRefused` for one that cannot be, and for a box and a crop at once."""
    from em_pipeline.ingest.asked import Asked
    from em_pipeline.ingest.regions import (
        parse_codec,
        parse_level,
        parse_random_crop,
        parse_raw_layout,
        parse_roi,
    )

    if roi is not None and random_crop is not None:
        raise InputRefused("Choose a region", "--roi and --random-crop are both given", "Give one of them")
    return Asked(
        name=name,
        level=None if level is None else parse_level(level),
        box=None if roi is None else parse_roi(roi),
        crop=parse_random_crop(random_crop, seed),
        image_set=int(image_set) if image_set and image_set.isdecimal() else image_set,
        include=tuple(include or ()),
        label_images=tuple(label or ()),
        voxel_size=parse_voxel_size(voxel_size),
        raw_layout=parse_raw_layout(raw_shape, raw_dtype),
        codec=None if codec is None else parse_codec(codec),
        kind=kind,
    )


def parse_voxel_size(text: str | None) -> PartialVoxelSize | None:
    """`Z,Y,X` in nanometres with parts that may be empty, one number for all three, or `file` for none.

    Raises `InputRefused` for anything else.
    """
    if text is None:
        return None
    if text.strip() == FROM_FILE:
        return PartialVoxelSize()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1:
        parts *= 3
    try:
        if not any(parts):
            parts = [text]
        z, y, x = (float(part) if part else None for part in parts)
        return PartialVoxelSize(z=z, y=y, x=x)
    except ValueError as error:
        raise InputRefused(
            f"Read the voxel size {text!r}",
            "it is not three positive numbers of nanometres, z,y,x",
            "Write it like 50,8,8, or 50,, where the file knows y and x",
        ) from error
