"""Which dataset is meant, and that what was once said of it holds."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

import pytest

from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec, Override
from em_pipeline.ingest.asked import Asked, spec_of
from em_pipeline.ingest.regions import AUTO, RandomCrop, parse_codec
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord, Source

BASE = "openorganelle-jrc_mus-nacc-2"
BOX = BoundingBox.at((0, 16, 32), (8, 8, 8))
SHAPES: Mapping[object, Shape] = {None: Shape(400, 500, 600), "s4": Shape(40, 50, 60)}


class Portal:
    """A portal that tells the shape of each of its levels."""

    slug = "openorganelle"
    institution = "janelia"
    licence_policy = ""
    max_connections = 1
    requests_per_second: float | None = None

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:
        raise NotImplementedError

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        assert spec.bounding_box is None
        shape = SHAPES.get(spec.level)
        claims = [
            Claim(
                field=f"core.volume_shape.{axis}",
                value=n,
                evidence=Evidence(origin=Origin.PORTAL, where="x", field="shape", extractor="test"),
            )
            for axis, n in zip("zyx", shape or (), strict=False)
        ]
        return PortalRecord(revision="r1", claims=tuple(claims))

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        raise NotImplementedError

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        raise NotImplementedError

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        raise NotImplementedError


SOURCES: dict[str, Source] = {"openorganelle": Portal(), "files": Portal()}


def ask(target: str, *known: DatasetSpec, asked: Asked | None = None) -> DatasetSpec:
    return spec_of(target, asked or Asked(), {spec.dataset_id: spec for spec in known}, SOURCES)


def test_a_level_is_a_dataset_of_its_own() -> None:
    spec = ask(BASE, asked=Asked(level="s4"))
    assert (spec.dataset_id, spec.accession, spec.level) == (f"{BASE}-s4", "jrc_mus-nacc-2", "s4")
    assert ask(BASE, asked=Asked(level=2)).dataset_id == f"{BASE}-l2"
    assert ask(BASE, asked=Asked(level="s4", name="small")).dataset_id == f"{BASE}-small"


def test_a_box_is_a_dataset_of_its_own() -> None:
    spec = ask(BASE, asked=Asked(box=BOX))
    assert spec.dataset_id == f"{BASE}-z0-8_y16-24_x32-40"
    assert (spec.bounding_box, spec.bounding_box_reason) == (BOX, "given with --roi")
    assert ask(BASE).bounding_box is None


def test_a_box_of_a_level_that_is_known() -> None:
    level = ask(BASE, asked=Asked(level="s4"))
    spec = ask(f"{BASE}-s4", level, asked=Asked(box=BOX))
    assert (spec.level, spec.bounding_box) == ("s4", BOX)
    assert spec.dataset_id == f"{BASE}-s4-z0-8_y16-24_x32-40"


@pytest.mark.parametrize("again", [Asked(level="s3"), Asked(level="s4")])
def test_a_level_of_a_level_is_refused(again: Asked) -> None:
    with pytest.raises(InputRefused, match=f"{BASE}$"):
        ask(f"{BASE}-s4", ask(BASE, asked=Asked(level="s4")), asked=again)


def test_a_box_of_a_box_is_refused() -> None:
    with pytest.raises(InputRefused, match="id of the whole"):
        ask(f"{BASE}-b", ask(BASE, asked=Asked(box=BOX, name="b")), asked=Asked(box=BOX))


def test_a_dataset_that_is_a_box_of_something_vast_has_other_boxes_beside_it() -> None:
    block = ask(BASE).model_copy(update={"level": 2, "bounding_box": BOX, "bounding_box_reason": "small"})
    elsewhere = BoundingBox.at((8, 8, 8), (4, 4, 4))
    other = ask(BASE, block, asked=Asked(box=elsewhere, name="other"))
    assert (other.dataset_id, other.level, other.bounding_box) == (f"{BASE}-other", 2, elsewhere)
    level = ask(BASE, block, asked=Asked(level="s4"))
    assert (level.dataset_id, level.level, level.bounding_box) == (f"{BASE}-s4", "s4", None)
    assert level.bounding_box_reason == ""


def test_a_random_crop_is_drawn_in_the_level() -> None:
    spec = ask(BASE, asked=Asked(level="s4", crop=RandomCrop(Shape(40, 16, 16), 7)))
    assert spec.dataset_id == f"{BASE}-s4-40x16x16-seed7"
    assert spec.bounding_box is not None
    assert spec.bounding_box.within(SHAPES["s4"])
    assert spec.bounding_box_reason == "random crop, seed 7, of (40, 50, 60)"
    again = ask(BASE, spec, asked=Asked(level="s4", crop=RandomCrop(Shape(40, 16, 16), 7)))
    assert again == spec


def test_a_crop_larger_than_the_level_is_refused() -> None:
    with pytest.raises(InputRefused, match="40,50,60"):
        ask(BASE, asked=Asked(level="s4", crop=RandomCrop(Shape(41, 16, 16), 7)))


def test_a_crop_needs_a_portal_that_tells_the_shape() -> None:
    with pytest.raises(InputRefused, match="--roi"):
        ask(BASE, asked=Asked(level="s9", crop=RandomCrop(Shape(1, 1, 1), 7)))


def test_what_was_said_of_a_part_holds() -> None:
    labelled = ask(BASE, asked=Asked(level="s4", label_images=("mito",)))
    known = labelled.model_copy(update={"voxel_size_nm": PartialVoxelSize(z=5)})
    again = ask(BASE, known, asked=Asked(level="s4"))
    assert again == known
    assert ask(f"{BASE}-s4", known) == known
    assert ask(BASE, known, asked=Asked(level="s4", label_images=("er",))).label_images == ("er",)
    assert ask(BASE, known).label_images == ()


def test_what_holds_of_one_level_is_not_said_of_another() -> None:
    override = Override(value=8.0, reason="measured")
    whole = ask(BASE).model_copy(
        update={
            "voxel_size_nm": PartialVoxelSize(z=8),
            "overrides": {"core.voxel_size_nm.z": override, "sample.organism": override},
        }
    )
    part = ask(BASE, whole, asked=Asked(level="s4"))
    assert part.voxel_size_nm is None
    assert list(part.overrides) == ["sample.organism"]
    assert ask(BASE, whole, asked=Asked(box=BOX)).voxel_size_nm == PartialVoxelSize(z=8)


def test_labels_and_voxel_size_stay_with_the_whole() -> None:
    said = Asked(label_images=("mito", "er"), voxel_size=PartialVoxelSize(z=4), image_set=1)
    spec = ask(BASE, asked=said)
    assert (spec.dataset_id, spec.label_images, spec.image_set) == (BASE, ("mito", "er"), 1)
    taken_back = ask(BASE, spec, asked=Asked(voxel_size=PartialVoxelSize()))
    assert (taken_back.voxel_size_nm, taken_back.voxel_size_reason) == (None, "")
    assert taken_back.label_images == ("mito", "er")


def test_an_image_set_with_a_name_is_a_dataset_of_its_own() -> None:
    spec = ask(BASE, asked=Asked(image_set=1, name="tilt"))
    assert (spec.dataset_id, spec.image_set) == (f"{BASE}-tilt", 1)


def test_crops_of_different_sizes_are_different_datasets() -> None:
    small, large = (ask(BASE, asked=Asked(crop=RandomCrop(Shape(n, n, n), 7))) for n in (8, 16))
    assert (small.dataset_id, large.dataset_id) == (f"{BASE}-8x8x8-seed7", f"{BASE}-16x16x16-seed7")


def test_image_sets_of_one_level_are_different_datasets() -> None:
    one = ask(BASE, asked=Asked(level="s4", image_set="recon-1"))
    two = ask(BASE, one, asked=Asked(level="s4", image_set="recon-2"))
    plain = ask(BASE, one, two, asked=Asked(level="s4"))
    assert [spec.dataset_id.removeprefix(BASE) for spec in (one, two, plain)] == [
        "-recon-1-s4",
        "-recon-2-s4",
        "-s4",
    ]
    assert plain.image_set is None


@pytest.mark.parametrize("image_set", ["recon-1/em/../fibsem", "a" * 200, "…", 3])
def test_any_image_set_gives_a_valid_name(image_set: int | str) -> None:
    assert ask(BASE, asked=Asked(level="s4", image_set=image_set)).image_set == image_set


@pytest.mark.parametrize(
    "other",
    [
        Asked(name="mine", level="s4", box=BoundingBox.at((0, 0, 0), (8, 8, 8))),
        Asked(name="mine", level=4, box=BOX),
        Asked(name="mine", level="s4", box=BOX, image_set="recon-2"),
        Asked(name="mine", level="s4", crop=RandomCrop(Shape(8, 8, 8), 7)),
    ],
)
def test_a_known_part_is_not_made_another_by_its_name(other: Asked) -> None:
    same = Asked(name="mine", level="s4", box=BOX)
    known = ask(BASE, asked=same)
    assert ask(BASE, known, asked=same) == known
    with pytest.raises(InputRefused, match=r"already the id of another.*0,16,32 to 8,24,40") as refused:
        ask(BASE, known, asked=other)
    assert f"em rm {known.dataset_id}" in str(refused.value)
    assert "--name" in str(refused.value)


def test_a_name_alone_is_refused_for_a_portal() -> None:
    with pytest.raises(InputRefused, match="Leave --name out"):
        ask(BASE, asked=Asked(name="mine"))


def test_a_name_of_which_nothing_remains_is_refused() -> None:
    with pytest.raises(InputRefused, match="name"):
        ask(BASE, asked=Asked(level="s4", name="…"))


def test_paths_keep_their_id_whatever_part_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    path.touch()
    whole = ask(str(path))
    part = ask(str(path), whole, asked=Asked(level=1, box=BOX))
    assert (part.dataset_id, part.level, part.bounding_box) == (whole.dataset_id, 1, BOX)
    assert ask(str(path), part) == part
    assert ask(part.dataset_id, part, asked=Asked(level=2)).dataset_id == whole.dataset_id
    assert ask(str(path), asked=Asked(name="mine")).dataset_id == "files-mine"
    with pytest.raises(InputRefused, match="Leave --name out"):
        ask(part.dataset_id, part, asked=Asked(name="mine", level=2))


def test_what_means_nothing_names_the_nearest() -> None:
    with pytest.raises(NotFound, match=BASE):
        ask("jrc_mus-nacc-2", ask(BASE))
    with pytest.raises(InputRefused, match="names nothing"):
        ask("")


def test_a_codec_holds_until_another_is_given_or_it_is_taken_back() -> None:
    known = ask(BASE, asked=Asked(codec="none"))
    assert known.codec == "none"
    assert ask(BASE, known).codec == "none"
    assert ask(BASE, known, asked=Asked(codec="zstd-3")).codec == "zstd-3"
    assert ask(BASE, known, asked=Asked(codec=AUTO)) == ask(BASE)


def test_codecs_as_people_write_them() -> None:
    assert [parse_codec(text) for text in (" NONE", "zstd-1", "auto")] == ["none", "zstd-1", "auto"]
    for text in ("", "zstd", "none,zstd-1"):
        with pytest.raises(
            InputRefused, match="Give one of none, zstd-1, zstd-3, blosc-lz4, blosc-zstd; auto"
        ):
            parse_codec(text)
