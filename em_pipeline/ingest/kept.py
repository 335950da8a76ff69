"""Reading back what an earlier step left in the store."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from em_pipeline.domain.errors import NotFound
from em_pipeline.storage.store import Store

Kept = TypeVar("Kept", bound=BaseModel)


def read_kept(model: type[Kept], store: Store, key: str) -> Kept | None:
    """The document under `key`, or None where there is none that can be understood.

    A damaged one is as good as none: the step that wrote it writes it again.
    """
    try:
        return model.model_validate_json(store.read(key))
    except (NotFound, ValidationError):
        return None
