"""What the contract suite needs to know of a source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_pipeline.demo.replay import Trouble
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import Source

ANY_HTTP = (Trouble.RESET, Trouble.SERVER_ERROR, Trouble.UNAVAILABLE)
ANY_DOCUMENT = (*ANY_HTTP, Trouble.HTML, Trouble.TRUNCATED, Trouble.CUT)


@dataclass(frozen=True)
class SourceCase:
    """A source against its portal's replay.

    `portal` makes the replay, which may keep what it generates in the folder given; `make` the source, which
    must not retry; `spec` one dataset whose volume has `shape` (z-y-x); `missing` one that is not there.
    `troubles` are those that this source can see when it fetches a record. `lists` says whether it has a
    listing of datasets. `label_images` are the names that its spec's dataset has.
    """

    portal: Callable[[Path], Any]
    make: Callable[[Any], Source]
    spec: Callable[[Any], DatasetSpec]
    shape: tuple[int, int, int]
    troubles: Sequence[Trouble]
    missing: Callable[[Any], DatasetSpec]
    lists: bool = True
    label_images: tuple[str, ...] = ()
