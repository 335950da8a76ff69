"""Which entries of a portal to ingest next: a pure difference between what it lists and what was handled.

Entries are handled in the order of their position, (release date, accession). New ones come first; then
older ones are looked at again, a few each time and round and round, because portals revise entries and
list some of them late.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.identity import dataset_id
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.ingest.discovery_policy import DiscoveryPolicy
from em_pipeline.sources.base import DatasetRef, EntryDetails

Position = tuple[str, str]

# Reasons kept in a cursor; a person reads them, and the log holds all.
KEPT_REASONS = 50
NO_RECORD = "the portal lists it and has no record of it"
NOT_AVAILABLE = "it is not released yet"
PUBLISHED = "already published at this revision"


class Begun(NamedTuple):
    """Of an entry at a revision, the datasets that were requested or found published."""

    revision: str
    datasets: tuple[str, ...]


class Cursor(BaseModel):
    """How far a portal's entries were handled.

    `at` is the position of the newest entry handled, `swept` that of the older one looked at again last.
    `taken` holds the revision of each entry that was requested or found published, `begun` that of each of
    which a part was, with the ids of its datasets in that part. `skipped` says why the last look took others
    not; it decides nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: Position | None = None
    swept: Position | None = None
    taken: dict[str, str] = {}
    begun: dict[str, Begun] = {}
    skipped: dict[str, str] = {}

    @classmethod
    def read(cls, text: str | None) -> Self:
        """A cursor from its JSON; the first one from nothing. Raises `InputRefused` for other text."""
        try:
            return cls.model_validate_json(text) if text else cls()
        except ValidationError as error:
            raise InputRefused(
                "Read the cursor of a discovery",
                f"{text!r:.80} is none: {error.errors()[0]['msg']}",
                "Reset the sensor's cursor: what is published is not ingested again",
            ) from error

    def text(self) -> str:
        """Its JSON."""
        return self.model_dump_json(exclude_defaults=True)


@dataclass(frozen=True)
class Request:
    """A run for one dataset. Runs of equal `run_key` are the same run, for ever."""

    dataset_id: str
    revision: str

    @property
    def run_key(self) -> str:
        return f"{self.dataset_id}@{self.revision}"


@dataclass(frozen=True)
class Discovery:
    """What to do, and where the next look begins.

    `register` are specs of datasets that are not known yet. `skipped` is accession → why it was not taken.
    `waiting` counts new entries that this look did not come to.
    """

    register: tuple[DatasetSpec, ...]
    run_requests: tuple[Request, ...]
    new_cursor: Cursor
    skipped: Mapping[str, str]
    waiting: int


def position(ref: DatasetRef) -> Position:
    """Where an entry stands in the order of handling; an undated one before all others."""
    return (ref.released.isoformat() if ref.released else "", ref.accession)


def look_up_order(listing: Sequence[DatasetRef], cursor: Cursor) -> list[DatasetRef]:
    """Every listed entry, in the order in which `discover` comes to them."""
    new, old = _by_age(listing, cursor)
    return [*new, *old]


def discover(
    listing: Sequence[DatasetRef],
    details: Mapping[str, EntryDetails | None],
    known: Mapping[str, str | None],
    cursor: Cursor,
    policy: DiscoveryPolicy,
    *,
    source: str,
) -> Discovery:
    """What to register and run, of the listed entries that were looked up.

    `details` holds, by accession, what the portal says of the first ones in `look_up_order`, None where it
    has no record; entries beyond them wait. `known` is dataset id → revision published, None where nothing
    is. No more than `policy.cap` runs are requested; where an entry has more image sets, the next look goes
    on with the others. The new cursor has moved over what was handled whole and no further.
    """
    look = _Look(details, known, policy, source, cursor)
    new, old = _by_age(listing, cursor)
    handled = look.over(new)
    swept = look.over(old)
    new_cursor = Cursor(
        at=position(new[handled - 1]) if handled else cursor.at,
        swept=position(old[swept - 1]) if swept else cursor.swept,
        taken=look.taken,
        begun=look.begun,
        skipped=dict(list(look.skipped.items())[:KEPT_REASONS]),
    )
    return Discovery(
        register=tuple(look.register),
        run_requests=tuple(look.requests),
        new_cursor=new_cursor,
        skipped=look.skipped,
        waiting=len(new) - handled,
    )


def _by_age(listing: Sequence[DatasetRef], cursor: Cursor) -> tuple[list[DatasetRef], list[DatasetRef]]:
    """New entries by position; older ones by position too, from where the last look at them ended."""
    listed = sorted({ref.accession: ref for ref in listing}.values(), key=position)
    if cursor.at is None:
        return listed, []
    new = [ref for ref in listed if position(ref) > cursor.at]
    old = [ref for ref in listed if position(ref) <= cursor.at]
    last = cursor.swept or ("", "")
    return new, sorted(old, key=lambda ref: (position(ref) <= last, position(ref)))


class _Look:
    """One look at a portal's entries, and what came of it."""

    def __init__(
        self,
        details: Mapping[str, EntryDetails | None],
        known: Mapping[str, str | None],
        policy: DiscoveryPolicy,
        source: str,
        cursor: Cursor,
    ) -> None:
        self._details, self._known, self._policy, self._source = details, known, policy, source
        self.taken, self.begun = dict(cursor.taken), dict(cursor.begun)
        self.register: list[DatasetSpec] = []
        self.requests: list[Request] = []
        self.skipped: dict[str, str] = {}

    def over(self, refs: Sequence[DatasetRef]) -> int:
        """Handle entries in order, as far as they were looked up and the cap reaches; gives how many."""
        for number, ref in enumerate(refs):
            if ref.accession not in self._details or not self._handle(ref):
                return number
        return len(refs)

    def _handle(self, ref: DatasetRef) -> bool:
        """Take or skip an entry; False where the cap leaves no room for all of it."""
        details = self._details[ref.accession]
        if details is not None and self.taken.get(ref.accession) == details.revision:
            return True
        reason, specs = self._wanted(ref, details)
        if details is None or not specs:
            self.skipped[ref.accession] = reason
            return True
        begun = self.begun.pop(ref.accession, None)
        done = begun.datasets if begun and begun.revision == details.revision else ()
        wanted = [spec for spec in specs if self._is_open(spec.dataset_id, details.revision, done)]
        if not wanted and not done:
            self.skipped[ref.accession] = PUBLISHED
        now = wanted[: max(0, self._policy.cap - len(self.requests))]
        self.register += [spec for spec in now if spec.dataset_id not in self._known]
        self.requests += [Request(spec.dataset_id, details.revision) for spec in now]
        if len(now) < len(wanted):
            if done or now:
                self.begun[ref.accession] = Begun(details.revision, (*done, *(one.dataset_id for one in now)))
            return False
        self.taken[ref.accession] = details.revision
        return True

    def _is_open(self, dataset: str, revision: str, done: Sequence[str]) -> bool:
        """Whether a dataset of an entry was neither requested nor published at its revision."""
        return dataset not in done and not _same_revision(self._known.get(dataset), revision)

    def _wanted(self, ref: DatasetRef, details: EntryDetails | None) -> tuple[str, list[DatasetSpec]]:
        """The datasets that an entry makes, or why it makes none."""
        if details is None:
            return NO_RECORD, []
        if not details.available:
            return NOT_AVAILABLE, []
        reason = self._policy.refusal(ref, details, taken_before=ref.accession in self.taken)
        if reason:
            return reason, []
        try:
            return "", self._specs(ref.accession, details)
        except InputRefused as error:
            return error.found, []

    def _specs(self, accession: str, details: EntryDetails) -> list[DatasetSpec]:
        """One spec per image set that fits. The first set's dataset has the entry's own id, for good: sets
        that a revision adds must not rename it."""
        if not details.image_sets:
            return [DatasetSpec(source=self._source, accession=accession)]
        specs = []
        for place, image_set in enumerate(details.image_sets):
            if self._policy.fits(accession, image_set):
                name = accession if place == 0 else f"{accession}-{image_set.name}"
                specs.append(
                    DatasetSpec(
                        source=self._source,
                        accession=accession,
                        dataset_id=dataset_id(self._source, name),
                        image_set=image_set.name,
                    )
                )
        return specs


def _same_revision(published: str | None, listed: str) -> bool:
    """Whether the published revision is the listed one; a record's may go on with a hash of its content."""
    return published is not None and (published == listed or published.startswith(f"{listed}-"))
