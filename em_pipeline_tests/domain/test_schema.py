"""The committed JSON Schema is that of the records we write."""

import json
from pathlib import Path

import jsonschema
import pytest

from em_pipeline.domain.evidence import Claim, Evidence, Origin
from em_pipeline.domain.record import DatasetRecord
from em_pipeline.domain.schema import record_schema

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "schema" / "record.schema.json"


def record() -> DatasetRecord:
    claims = [
        Claim(
            field=field,
            value=value,
            evidence=Evidence(origin=origin, where="a.tif", field="tag", extractor="test", raw=value),
        )
        for field, value, origin in [
            ("core.volume_shape.y", 5500, Origin.FILE),
            ("core.volume_shape.y", 5632, Origin.PORTAL),
            ("core.unit", "µm", Origin.FILE),
            ("core.imaging_start_date", "2018-06-11", Origin.FILE),
        ]
    ]
    return DatasetRecord.resolve("empiar-11759", "r1", claims)


def test_the_committed_schema_is_current() -> None:
    current = COMMITTED.read_text(encoding="utf-8") == record_schema()
    assert current, "run `python -m em_pipeline.domain.schema > docs/schema/record.schema.json`"


def test_records_fit_the_schema_and_others_do_not() -> None:
    schema = json.loads(COMMITTED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(record().model_dump_json())
    jsonschema.validate(document, schema)
    document["fields"]["core"]["volume_shape"]["y"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)
