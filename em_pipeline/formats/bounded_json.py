"""JSON of strangers: nested no deeper than anything that walks through it can go."""

import json
from typing import Any

# Documents of volumes nest some five deep; Python's stack ends near a thousand.
DEEPEST = 100


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document. Raises `ValueError` for what is none, or nests deeper than `DEEPEST`."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError(f"it nests deeper than {DEEPEST} levels") from error
    level = [document]
    for _ in range(DEEPEST):
        level = [child for value in level for child in _children(value)]
        if not level:
            return document
    raise ValueError(f"it nests deeper than {DEEPEST} levels")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
