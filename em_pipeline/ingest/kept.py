"""Reading back what an earlier step left in the store."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Kept = TypeVar("Kept", bound=BaseModel)


def read_kept(model: type[Kept], path: Path) -> Kept | None:
    """The document at `path`, or None where there is none that can be understood.

    A damaged one is as good as none: the step that wrote it writes it again.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
