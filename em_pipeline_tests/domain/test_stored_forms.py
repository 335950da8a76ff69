"""What lies in stores and catalogues, and what versions are hashed from, stays as it was first written."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape, VoxelSize
from em_pipeline.domain.identity import short_hash
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline_tests.domain.test_schema import record
from em_pipeline_tests.volumes.planned import plan_with

BEGUN = '{"source":"files","accession":"a","dataset_id":"files-a"'
STORED = {
    "plain": ({}, "}"),
    "box": (
        {"bounding_box": {"start": [0, 1, 2], "stop": [3, 4, 5]}, "bounding_box_reason": "small"},
        ',"bounding_box":{"start":[0,1,2],"stop":[3,4,5]},"bounding_box_reason":"small"}',
    ),
    "box of axes": (
        {"bounding_box": {"start": {"z": 0, "y": 0, "x": "0"}, "stop": [1, 1.0, 1]}},
        ',"bounding_box":{"start":[0,0,0],"stop":[1,1,1]}}',
    ),
    "lengths": (
        {"voxel_size_nm": {"z": 50, "y": "4.5", "x": None}},
        ',"voxel_size_nm":{"z":50.0,"y":4.5}}',
    ),
    "no lengths": ({"voxel_size_nm": {}}, ',"voxel_size_nm":{}}'),
    "layout": (
        {"raw_layout": {"shape": [1, 2, 3], "dtype": ">u2"}},
        ',"raw_layout":{"shape":[1,2,3],"dtype":">u2"}}',
    ),
    "whole layout": (
        {"raw_layout": {"shape": [1, 2, 3], "dtype": "u1", "offset": 7, "order": "F"}},
        ',"raw_layout":{"shape":[1,2,3],"dtype":"u1","offset":7,"order":"F"}}',
    ),
}


@pytest.mark.parametrize(("given", "canonical"), STORED.values(), ids=STORED)
def test_specs_are_written_and_read_as_ever(given: dict[str, Any], canonical: str) -> None:
    spec = DatasetSpec.model_validate({"source": "files", "accession": "a", **given})
    assert spec.canonical_json() == BEGUN + canonical
    for text in (spec.canonical_json(), spec.model_dump_json(), json.dumps(spec.model_dump(mode="json"))):
        assert DatasetSpec.model_validate_json(text) == spec
        assert DatasetSpec.model_validate(json.loads(text)) == spec


def test_a_spec_of_values_is_that_of_their_json() -> None:
    spec = DatasetSpec(
        source="files",
        accession="a",
        bounding_box=BoundingBox.at((0, 1, 2), (3, 3, 3)),
        voxel_size_nm=PartialVoxelSize(z=50, y=8),
    )
    told = '"bounding_box":{"start":[0,1,2],"stop":[3,4,5]},"voxel_size_nm":{"z":50.0,"y":8.0}'
    assert spec.canonical_json() == f"{BEGUN},{told}}}"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "empty box": ({"bounding_box": {"start": [0, 0, 0], "stop": [0, 1, 1]}}, "empty or negative"),
    "part of a voxel": ({"bounding_box": {"start": [0, 0, 0.5], "stop": [1, 1, 1]}}, "fractional part"),
    "two axes": ({"bounding_box": {"start": [0, 0], "stop": [1, 1, 1]}}, "start.x"),
    "key of a box": ({"bounding_box": {"start": [0, 0, 0], "stop": [1, 1, 1], "q": 1}}, "bounding_box.q"),
    "negative length": ({"voxel_size_nm": {"z": -1}}, "voxel_size_nm"),
    "text as a length": ({"voxel_size_nm": {"z": "a"}}, "voxel_size_nm.z"),
    "key of a length": ({"voxel_size_nm": {"q": 1}}, "voxel_size_nm.q"),
    "no lengths": ({"voxel_size_nm": 3}, "voxel_size_nm"),
    "empty layout": ({"raw_layout": {"shape": [1, 0, 1], "dtype": "u1"}}, "empty or negative"),
    "complex layout": ({"raw_layout": {"shape": [1, 1, 1], "dtype": "c8"}}, "raw_layout"),
    "layout before its file": (
        {"raw_layout": {"shape": [1, 1, 1], "dtype": "u1", "offset": -1}},
        "raw_layout",
    ),
    "order of a layout": (
        {"raw_layout": {"shape": [1, 1, 1], "dtype": "u1", "order": "Q"}},
        "raw_layout.order",
    ),
    "key of a layout": ({"raw_layout": {"shape": [1, 1, 1], "dtype": "u1", "q": 1}}, "raw_layout.q"),
}


@pytest.mark.parametrize(("given", "found"), WRONG.values(), ids=WRONG)
def test_specs_that_were_refused_are_refused(given: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        DatasetSpec.model_validate({"source": "files", "accession": "a", **given})


def test_records_are_written_and_read_as_ever() -> None:
    made = record()
    assert short_hash(made.model_dump_json(indent=2)) == "01e0f16ffb55"
    assert json.loads(made.model_dump_json()) == made.model_dump(mode="json")
    assert DatasetRecord.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("part", ["claims", "conflicts"])
def test_records_with_unknown_keys_are_refused(part: str) -> None:
    document = record().model_dump(mode="json")
    document[part][0]["more"] = 1
    with pytest.raises(ValidationError, match=f"{part}.0.more"):
        DatasetRecord.model_validate(document)


def test_digests_of_a_plan_are_what_they_were() -> None:
    plan = plan_with(
        Shape(299, 298, 297),
        "uint8",
        VoxelSize(z=8, y=4, x=4),
        source_chunk=Shape(1, 1, 297),
        memory_budget=1 << 30,
        threads=2,
    )
    box = BoundingBox.at((1, 2, 3), plan.shape)
    assert (
        plan.digest(name="a", box=box) == "36922973f75b57d3682642fb9769590ddd3fa9ff20350305df03179d2e2d7ac1"
    )
    assert (
        plan.work_digest(name="a", box=box)
        == "1f8f928dbb547413110b90cb0543f03e46b347e380a877657ef09be08fe893c8"
    )
