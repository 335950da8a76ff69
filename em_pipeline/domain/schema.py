"""The JSON Schema of records, for whoever reads them without this package.

`python -m em_pipeline.domain.schema > docs/schema/record.schema.json` writes the committed one.
"""

import json
import sys

from em_pipeline.domain.record import DatasetRecord

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def record_schema() -> str:
    """JSON Schema of `DatasetRecord` as it is written, indented, ending with a newline."""
    schema = DatasetRecord.model_json_schema(mode="serialization")
    return json.dumps({"$schema": DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(record_schema())
