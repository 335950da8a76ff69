"""Levels asked of what has none."""

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.spec import DatasetSpec


def refuse_levels(spec: DatasetSpec, of: str) -> None:
    """Raise `InputRefused` where the spec names a level other than 0 of files, called `of`, without any."""
    if spec.level not in (None, 0, "0"):
        raise InputRefused(
            f"Take level {spec.level!r} of {spec.dataset_id}",
            f"{of}, which has no levels but the full size",
            "Leave --level (`level` in the spec) out; --roi takes a box of it",
        )
