"""The curated specs: `datasets.yaml` beside this module, read strictly."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from em_pipeline.domain.errors import EmError, InputRefused
from em_pipeline.domain.record import FIELD_NAMES
from em_pipeline.domain.spec import Curated, DatasetSpec, Override

DATASETS = Path(__file__).with_name("datasets.yaml")


def curated_specs(path: Path = DATASETS) -> tuple[DatasetSpec, ...]:
    """The specs of a file like `datasets.yaml`, in its order.

    Raises `InputRefused` that names the file, the entry and the field, and the nearest right key.
    """
    specs: list[DatasetSpec] = []
    for number, entry in enumerate(_entries(path)):
        where = f"Read entry {number} ({_label(entry)}) of {path}"
        spec = _spec(entry, where)
        if any(spec.dataset_id == other.dataset_id for other in specs):
            raise InputRefused(where, f"{spec.dataset_id} is listed twice", "Remove one of the two entries")
        specs.append(spec)
    return tuple(specs)


def _entries(path: Path) -> list[Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputRefused(f"Read {path}", error.strerror or str(error), "") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputRefused(f"Read {path}", f"not YAML: {error}", "Correct the file") from error
    if not isinstance(document, dict) or set(document) != {"datasets"}:
        keys = sorted(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise InputRefused(f"Read {path}", f"its top level is {keys}", "It has one key, `datasets`, a list")
    entries = document["datasets"]
    if not isinstance(entries, list):
        raise InputRefused(f"Read {path}", "`datasets` is not a list", "Begin each entry with `- source: …`")
    return entries


def _label(entry: Any) -> str:
    if not isinstance(entry, dict):
        return type(entry).__name__
    return f"{entry.get('source', 'no source')} {entry.get('accession', 'without accession')}"


def _spec(entry: Any, where: str) -> DatasetSpec:
    if not isinstance(entry, dict):
        raise InputRefused(where, "it is not a mapping", "Begin it with `- source: …`")
    _check_keys(entry, DatasetSpec.model_fields, where, "")
    for part, model in (("overrides", Override), ("curated", Curated)):
        fields = entry.get(part, {})
        if not isinstance(fields, dict):
            raise InputRefused(where, f"{part} is not a mapping", "Its keys are record fields")
        _check_keys(fields, FIELD_NAMES, where, f"{part}.")
        for field, value in fields.items():
            if isinstance(value, dict):
                _check_keys(value, model.model_fields, where, f"{part}.{field}.")
    try:
        return DatasetSpec.model_validate(entry)
    except EmError as error:
        raise InputRefused(where, str(error), "Correct the entry") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the entry"
        raise InputRefused(
            where, f"{field} = {first.get('input')!r}: {first['msg']}", "Correct it"
        ) from error


def _check_keys(given: dict[Any, Any], known: Any, where: str, prefix: str) -> None:
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.0)[0]
            raise InputRefused(where, f"{prefix}{key} is no key", f"The nearest is {prefix}{nearest}")
