"""Which entries are taken, skipped and looked at again; over any history none is lost or asked for twice."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.demo.portal import DemoPortal
from em_pipeline.domain.errors import InputRefused
from em_pipeline.ingest.discovery import (
    NO_RECORD,
    NOT_AVAILABLE,
    PUBLISHED,
    Cursor,
    Discovery,
    discover,
    look_up_order,
    position,
)
from em_pipeline.ingest.discovery_policy import DiscoveryPolicy
from em_pipeline.sources.base import DatasetRef, EntryDetails, ImageSet, Source, WatchedSource
from em_pipeline.sources.empiar import EmpiarSource

DAY = date(2026, 1, 1)
VOLUME = ImageSet(0, "reconstructed volumes")
FITS = EntryDetails("2026-01-01", ("SBF-SEM",), (VOLUME,), 10**9, "CC0-1.0")


def of_sets(count: int) -> EntryDetails:
    return replace(FITS, image_sets=tuple(ImageSet(n, VOLUME.category) for n in range(count)))


def ref(accession: str, day: int | None = 0) -> DatasetRef:
    released = None if day is None else DAY + timedelta(days=day)
    return DatasetRef(accession, f"listed-{accession}", released, "t")


def looked(
    *refs: DatasetRef,
    details: Mapping[str, EntryDetails | None] | None = None,
    known: Mapping[str, str | None] | None = None,
    cursor: Cursor | None = None,
    **rules: object,
) -> Discovery:
    described = {one.accession: FITS for one in refs} if details is None else details
    policy = DiscoveryPolicy.model_validate(rules)
    return discover(refs, described, known or {}, cursor or Cursor(), policy, source="empiar")


def requested(found: Discovery) -> list[str]:
    return [request.run_key for request in found.run_requests]


class TestOneLook:
    """What a single look does."""

    def test_a_new_entry_is_registered_and_requested_together(self) -> None:
        found = looked(ref("11759"))
        (spec,) = found.register
        assert (spec.dataset_id, spec.accession, spec.image_set) == ("empiar-11759", "11759", 0)
        assert requested(found) == ["empiar-11759@2026-01-01"]
        assert found.new_cursor.taken == {"11759": "2026-01-01"}

    def test_nothing_new_does_nothing(self) -> None:
        first = looked(ref("11759"))
        again = looked(ref("11759"), cursor=first.new_cursor)
        assert (again.register, again.run_requests, dict(again.skipped)) == ((), (), {})

    def test_an_empty_listing_removes_nothing(self) -> None:
        first = looked(ref("11759"))
        assert looked(cursor=first.new_cursor).new_cursor == first.new_cursor

    def test_entries_are_taken_by_date_then_accession(self) -> None:
        found = looked(ref("11", 2), ref("30", 1), ref("20", 1))
        assert [request.dataset_id for request in found.run_requests] == [
            "empiar-20",
            "empiar-30",
            "empiar-11",
        ]
        assert found.new_cursor.at == (str(DAY + timedelta(days=2)), "11")

    def test_a_revised_entry_is_another_run_of_a_known_dataset(self) -> None:
        first = looked(ref("11759"))
        revised = {"11759": replace(FITS, revision="2026-02-02")}
        found = looked(
            ref("11759"), details=revised, cursor=first.new_cursor, known={"empiar-11759": "2026-01-01-abc"}
        )
        assert (found.register, requested(found)) == ((), ["empiar-11759@2026-02-02"])

    def test_what_is_published_at_this_revision_is_not_run_again(self) -> None:
        found = looked(ref("11759"), known={"empiar-11759": "2026-01-01-0123456789ab"})
        assert (found.run_requests, found.skipped) == ((), {"11759": PUBLISHED})
        assert found.new_cursor.taken == {"11759": "2026-01-01"}

    @pytest.mark.parametrize("published", [None, "2025-12-31-0123456789ab", "2026-01-011"])
    def test_a_known_dataset_without_this_revision_is_run(self, published: str | None) -> None:
        found = looked(ref("11759"), known={"empiar-11759": published})
        assert (found.register, requested(found)) == ((), ["empiar-11759@2026-01-01"])

    def test_an_entry_listed_late_is_found_by_the_look_back(self) -> None:
        first = looked(ref("20", 5))
        found = looked(ref("20", 5), ref("10", 1), cursor=first.new_cursor)
        assert requested(found) == ["empiar-10@2026-01-01"]
        assert found.new_cursor.at == first.new_cursor.at

    def test_an_undated_entry_is_not_lost(self) -> None:
        first = looked(ref("20", 5))
        assert requested(looked(ref("20", 5), ref("10", None), cursor=first.new_cursor))
        assert requested(looked(ref("10", None)))

    def test_a_skipped_entry_that_comes_to_fit_is_taken(self) -> None:
        first = looked(ref("10"), details={"10": replace(FITS, methods=("EMDB",))})
        assert not first.run_requests
        assert requested(looked(ref("10"), cursor=first.new_cursor)) == ["empiar-10@2026-01-01"]

    def test_a_listed_accession_that_makes_no_id_holds_up_nobody(self) -> None:
        found = looked(ref("…", 0), ref("20", 1))
        assert requested(found) == ["empiar-20@2026-01-01"]
        assert "not <source>-<accession>" in found.skipped["…"]

    def test_an_entry_listed_twice_is_taken_once(self) -> None:
        assert len(looked(ref("20"), ref("20")).run_requests) == 1


class TestCap:
    """A look requests no more runs than allowed, and the rest comes next."""

    def test_the_cursor_moves_over_what_was_handled_only(self) -> None:
        refs = [ref(str(10 + n), n) for n in range(5)]
        first = looked(*refs, cap=2)
        assert (requested(first)[-1], first.waiting) == ("empiar-11@2026-01-01", 3)
        second = looked(*refs, cap=2, cursor=first.new_cursor)
        assert [request.dataset_id for request in second.run_requests] == ["empiar-12", "empiar-13"]

    def test_skipped_entries_do_not_count(self) -> None:
        refs = [ref(str(10 + n), n) for n in range(5)]
        details = {one.accession: replace(FITS, methods=("EMDB",)) for one in refs} | {"14": FITS}
        assert requested(looked(*refs, details=details, cap=1)) == ["empiar-14@2026-01-01"]

    def test_what_was_not_looked_up_waits(self) -> None:
        refs = [ref(str(10 + n), n) for n in range(5)]
        found = looked(*refs, details={"10": FITS, "11": FITS})
        assert (len(found.run_requests), found.waiting) == (2, 3)
        assert found.new_cursor.at == position(refs[1])

    def test_the_look_back_goes_round(self) -> None:
        refs = [ref(str(10 + n), n) for n in range(5)]
        cursor = looked(*refs).new_cursor
        seen: list[str] = []
        for _ in range(4):
            order = look_up_order(refs, cursor)[:2]
            seen += [one.accession for one in order]
            cursor = looked(*refs, details={one.accession: FITS for one in order}, cursor=cursor).new_cursor
        assert seen == ["10", "11", "12", "13", "14", "10", "11", "12"]


class TestImageSets:
    """An entry's volumes are datasets of their own."""

    SETS = (ImageSet(0, "tilt series"), VOLUME, ImageSet(2, "Micrographs - Single Frame"))

    def test_each_that_fits_is_a_dataset(self) -> None:
        details = replace(FITS, image_sets=(ImageSet(0, VOLUME.category), ImageSet(1, VOLUME.category)))
        specs = looked(ref("10"), details={"10": details}).register
        assert [(spec.dataset_id, spec.image_set) for spec in specs] == [("empiar-10", 0), ("empiar-10-1", 1)]

    def test_those_of_other_kinds_are_left_out(self) -> None:
        sets = (ImageSet(0, "tilt series"), ImageSet(1, VOLUME.category))
        specs = looked(ref("10"), details={"10": replace(FITS, image_sets=sets)}).register
        assert [(spec.dataset_id, spec.image_set) for spec in specs] == [("empiar-10-1", 1)]

    def test_none_that_fits_is_a_reason(self) -> None:
        sets = (ImageSet(0, "tilt series"), ImageSet(1, "class averages"))
        found = looked(ref("10"), details={"10": replace(FITS, image_sets=sets)})
        assert found.skipped == {"10": "its image sets are class averages, tilt series"}

    def test_the_cap_parts_an_entry_and_the_next_look_goes_on_within_it(self) -> None:
        refs = (ref("10", 0), ref("20", 1), ref("30", 2))
        details = {"10": FITS, "20": of_sets(3), "30": FITS}
        cursor, looks = Cursor(), []
        for _ in range(4):
            found = looked(*refs, details=details, cap=2, cursor=cursor)
            cursor = Cursor.read(found.new_cursor.text())
            looks.append([request.dataset_id for request in found.run_requests])
            assert [spec.dataset_id for spec in found.register] == looks[-1]
        assert looks == [["empiar-10", "empiar-20"], ["empiar-20-1", "empiar-20-2"], ["empiar-30"], []]
        assert (cursor.begun, cursor.taken) == (
            {},
            {"10": FITS.revision, "20": FITS.revision, "30": FITS.revision},
        )

    def test_a_parted_entry_that_is_revised_begins_anew(self) -> None:
        first = looked(ref("20"), details={"20": of_sets(3)}, cap=2)
        revised = {"20": replace(of_sets(3), revision="2026-02-02")}
        second = looked(ref("20"), details=revised, cap=2, cursor=first.new_cursor)
        assert requested(second) == ["empiar-20@2026-02-02", "empiar-20-1@2026-02-02"]
        third = looked(ref("20"), details=revised, cap=2, cursor=second.new_cursor)
        assert requested(third) == ["empiar-20-2@2026-02-02"]

    def test_an_older_entry_is_parted_too(self) -> None:
        refs = (ref("10", 0), ref("20", 1))
        taken = looked(*refs, details={"10": FITS, "20": FITS}).new_cursor
        revised = {"10": replace(of_sets(3), revision="2026-02-02"), "20": FITS}
        first = looked(*refs, details=revised, cap=2, cursor=taken)
        second = looked(*refs, details=revised, cap=2, cursor=first.new_cursor)
        assert requested(first) + requested(second) == [
            "empiar-10@2026-02-02", "empiar-10-1@2026-02-02", "empiar-10-2@2026-02-02",
        ]  # fmt: skip

    def test_those_ingested_by_hand_are_not_asked_for(self) -> None:
        known = {"empiar-20": None, "empiar-20-1": f"{FITS.revision}-0123456789ab"}
        found = looked(ref("20"), details={"20": of_sets(3)}, known=known)
        assert [request.dataset_id for request in found.run_requests] == ["empiar-20", "empiar-20-2"]
        assert [spec.dataset_id for spec in found.register] == ["empiar-20-2"]
        assert found.new_cursor.taken == {"20": FITS.revision}

    def test_a_source_without_image_sets_has_one_dataset(self) -> None:
        (spec,) = looked(ref("10"), details={"10": replace(FITS, image_sets=())}).register
        assert (spec.dataset_id, spec.image_set) == ("empiar-10", None)


class TestPolicy:
    """Why an entry is not taken."""

    @pytest.mark.parametrize(
        ("details", "rules", "reason"),
        [
            (None, {}, NO_RECORD),
            (replace(FITS, available=False), {}, NOT_AVAILABLE),
            (replace(FITS, methods=("EMDB",)), {}, "imaged by EMDB, which is not asked for"),
            (replace(FITS, methods=()), {}, "imaged by an unknown method, which is not asked for"),
            (
                replace(FITS, size=None),
                {},
                "the portal does not state its size, and only at most 50.0GB (`max_size`) is taken; "
                "`none` waives a bound",
            ),
            (
                replace(FITS, size=10**12),
                {},
                "it has 1.0TB, and only at most 50.0GB (`max_size`) is taken",
            ),
            (
                replace(FITS, size=10),
                {"min_size": "1kB"},
                "it has 10B, and only at least 1.0KB (`min_size`) and at most 50.0GB (`max_size`) is taken",
            ),
            (FITS, {"licences": "CC-BY-4.0"}, "its licence is CC0-1.0"),
            (replace(FITS, licence=None), {"licences": "CC0-1.0"}, "its licence is not stated"),
            (FITS, {"since": "2026-01-02"}, "released on 2026-01-01, before 2026-01-02 (`since`)"),
            (FITS, {"never": "10, 11"}, "the list `never` names it"),
            (FITS, {"never": "10", "always": "10"}, "the list `never` names it"),
        ],
    )
    def test_reasons(self, details: EntryDetails | None, rules: dict[str, str], reason: str) -> None:
        found = looked(ref("10"), details={"10": details}, **rules)
        assert (found.skipped, found.register, found.run_requests) == ({"10": reason}, (), ())
        assert found.new_cursor.skipped == {"10": reason}
        assert found.new_cursor.taken == {}

    @pytest.mark.parametrize(
        "method",
        [
            "SBF-SEM",
            "FIB-SEM",
            "fib sem",
            "focused ion beam scanning electron microscopy (FIB-SEM)",
            "ssTEM",
            "ATUM-SEM",
            "Array Tomography",
            "serial-section TEM",
        ],
    )
    def test_volume_em_by_any_spelling(self, method: str) -> None:
        assert looked(ref("10"), details={"10": replace(FITS, methods=(method,))}).run_requests

    def test_always_beats_every_other_rule(self) -> None:
        sets = (ImageSet(0, "tilt series"),)
        odd = replace(FITS, methods=("EMDB",), size=None, image_sets=sets)
        found = looked(
            ref("10"), details={"10": odd}, always="10", licences="none of these", since="2030-01-01"
        )
        assert requested(found) == ["empiar-10@2026-01-01"]

    def test_since_is_no_matter_for_a_revision_of_what_was_taken(self) -> None:
        first = looked(ref("10"))
        revised = {"10": replace(FITS, revision="2026-02-02")}
        assert looked(ref("10"), details=revised, cursor=first.new_cursor, since="2026-01-02").run_requests

    def test_rules_can_be_switched_off(self) -> None:
        odd = replace(FITS, methods=("EMDB",), size=10**15, image_sets=(ImageSet(0, "other"),))
        rules = {"methods": "", "categories": "", "max_size": "none"}
        assert looked(ref("10"), details={"10": odd}, **rules).run_requests

    def test_settings_make_the_policy(self, empiar: WatchedSource) -> None:
        options = {"methods": "FIB-SEM, SBF-SEM", "max_size": "2GB", "cap": "3", "since": "2026-01-31"}
        policy = DiscoveryPolicy.of_source(empiar, options)
        assert policy.methods == ("FIB-SEM", "SBF-SEM")
        assert (policy.max_size, policy.cap, policy.since) == (2 * 10**9, 3, date(2026, 1, 31))

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({}, "the portal does not state its size"),
            ({"max_size": "none"}, ""),
            ({"always": "10"}, ""),
            ({"max_size": "none", "methods": "FIB-SEM"}, "imaged by an unknown method"),
        ],
    )
    def test_a_portal_that_only_lists(self, options: dict[str, str], reason: str) -> None:
        policy = DiscoveryPolicy.of_source(Lists(), options)
        refusal = policy.refusal(ref("10"), EntryDetails("r"), taken_before=False)
        assert refusal.startswith(reason)
        assert bool(refusal) == bool(reason)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "x"}, "nearest is methods"),
            ({"cap": "0"}, "discovery.empiar.cap"),
            ({"since": "soon"}, "discovery.empiar.since"),
            ({"max_size": "big"}, "discovery.empiar.max_size"),
        ],
    )
    def test_settings_that_cannot_be_meant(
        self, options: dict[str, str], message: str, empiar: WatchedSource
    ) -> None:
        with pytest.raises(InputRefused, match=message):
            DiscoveryPolicy.of_source(empiar, options)

    @pytest.fixture
    def empiar(self) -> WatchedSource:
        return EmpiarSource()


class Lists(EmpiarSource):
    """A source that says of its entries only that they are there."""

    describe = None  # type: ignore[assignment]


def test_a_cursor_survives_its_text() -> None:
    cursor = looked(ref("10"), ref("20", 1), details={"10": FITS, "20": None}).new_cursor
    assert Cursor.read(cursor.text()) == cursor
    assert Cursor.read(None) == Cursor.read("") == Cursor()


def test_another_text_is_no_cursor() -> None:
    with pytest.raises(InputRefused, match="Reset the sensor's cursor"):
        Cursor.read("2026-01-01")


@dataclass
class Portal:
    """A portal whose entries come, are revised, and are now and then not listed."""

    entries: dict[str, tuple[int, int]] = field(default_factory=dict)  # accession → day, revision
    hidden: set[str] = field(default_factory=set)

    def listing(self) -> list[DatasetRef]:
        return [ref(name, day) for name, (day, _) in self.entries.items() if name not in self.hidden]

    def details(self, accession: str) -> EntryDetails:
        fits = int(accession) % 3 > 0
        revision = f"r{self.entries[accession][1]}"
        sets = of_sets(1 + int(accession) % 4)
        return replace(sets, revision=revision, methods=("SBF-SEM",) if fits else ("EMDB",))

    @staticmethod
    def datasets(accession: str) -> list[str]:
        names = [accession, *(f"{accession}-{n}" for n in range(1, 1 + int(accession) % 4))]
        return [f"empiar-{name}" for name in names]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("release"), st.integers(0, 60), st.integers(0, 9)),
        st.tuples(st.just("revise"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("hide"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("show"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("look"), st.integers(1, 4), st.integers(1, 8)),
        st.tuples(st.just("outage"), st.integers(1, 8), st.just(0)),
    ),
    max_size=60,
)


class World:
    """A portal and a sensor over a history of events."""

    def __init__(self) -> None:
        self.portal, self.cursor = Portal(), Cursor()
        self.requests: list[str] = []
        self.registered: list[str] = []

    def happen(self, event: tuple[str, int, int]) -> None:
        kind, number, other = event
        name = str(number)
        if kind == "release" and name not in self.portal.entries:
            self.portal.entries[name] = (other, 0)
        elif kind == "revise" and name in self.portal.entries:
            day, revision = self.portal.entries[name]
            self.portal.entries[name] = (day, revision + 1)
        elif kind == "hide":
            self.portal.hidden.add(name)
        elif kind == "show":
            self.portal.hidden.discard(name)
        elif kind == "look":
            self.look(cap=number, lookups=other)

    def look(self, cap: int, lookups: int) -> None:
        """An outage on the way would raise before `discover`, and leave the cursor as it is."""
        listing = self.portal.listing()
        random.Random(len(listing)).shuffle(listing)
        order = look_up_order(listing, self.cursor)[:lookups]
        details = {one.accession: self.portal.details(one.accession) for one in order}
        known = dict.fromkeys(self.registered)
        found = discover(listing, details, known, self.cursor, DiscoveryPolicy(cap=cap), source="empiar")
        assert len(found.run_requests) <= cap
        self.requests += requested(found)
        self.registered += [spec.dataset_id for spec in found.register]
        self.cursor = Cursor.read(found.new_cursor.text())


@given(EVENTS)
def test_no_entry_is_lost_or_requested_twice(events: list[tuple[str, int, int]]) -> None:
    world = World()
    for event in events:
        world.happen(event)
    world.portal.hidden.clear()
    for _ in range(4 * (sum(len(Portal.datasets(name)) for name in world.portal.entries) + 1)):
        world.look(cap=1, lookups=2)
    assert len(set(world.requests)) == len(world.requests)
    assert len(set(world.registered)) == len(world.registered)
    fitting = {name: entry for name, entry in world.portal.entries.items() if int(name) % 3 > 0}
    newest = {
        f"{one}@r{revision}" for name, (_, revision) in fitting.items() for one in Portal.datasets(name)
    }
    assert newest <= set(world.requests)
    assert set(world.registered) == {one for name in fitting for one in Portal.datasets(name)}


def test_the_real_listing_is_discovered(portal: DemoPortal) -> None:
    source: Source = EmpiarSource(**portal.options, retries=0)
    listing = list(source.list_datasets())
    found = looked(*listing)
    assert [spec.dataset_id for spec in found.register] == ["empiar-11759", "empiar-99001", "empiar-99002"]
