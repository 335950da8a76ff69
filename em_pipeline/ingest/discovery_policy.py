"""Which entries a sensor takes: rules over what a portal says of an entry."""

import difflib
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.modality import modality
from em_pipeline.sources.base import DatasetRef, DescribingSource, EntryDetails, ImageSet, WatchedSource

# Volume EM, as EMPIAR's experiment types (deposition schema, `experiment_type`) and depositors call it.
VOLUME_EM = (
    "SBF-SEM",
    "FIB-SEM",
    "ATUM-SEM",
    "ssTEM",
    "ssSEM",
    "ssET",
    "array tomography",
    "serial section TEM",
    "serial section SEM",
)
# EMPIAR's image-set categories (deposition schema, `category`) whose images are sections of a volume.
VOLUMES = ("reconstructed volumes", "micrographs - single frame", "stitched maps")
# Rules for a portal that says of its entries only that they are there: how they were imaged is not asked.
# Their size stays asked for, so that nobody ingests a whole portal by switching its sensor on.
UNDESCRIBED = {"methods": "", "categories": ""}
WORD = re.compile(r"[^a-z0-9]+")


class DiscoveryPolicy(BaseModel):
    """Rules of one source's sensor; an empty list or None does not restrict.

    A rule applies to what the portal says; an entry of which it does not say what a rule asks is skipped.
    Lists are written with commas. `always` and `never` are accessions that no other rule decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = Field(default=VOLUME_EM, description="how entries were imaged")
    categories: tuple[str, ...] = Field(default=VOLUMES, description="kinds of image sets")
    licences: tuple[str, ...] = Field(default=(), description="SPDX identifiers, such as CC0-1.0")
    min_size: ByteSize | None = Field(default=None, description="of an entry, such as 1MB")
    max_size: ByteSize | None = Field(default=ByteSize(50 * 10**9), description="of an entry, such as 50GB")
    since: date | None = Field(default=None, description="first release date, such as 2026-01-31")
    always: frozenset[str] = Field(default=frozenset(), description="accessions to take in any case")
    never: frozenset[str] = Field(default=frozenset(), description="accessions never to take")
    cap: int = Field(default=5, ge=1, le=1000, description="runs requested per look")
    lookups: int = Field(default=200, ge=1, le=1000, description="entries looked up per look")
    interval_s: int = Field(default=3600, ge=1, description="seconds between two looks")

    @field_validator("methods", "categories", "licences", "always", "never", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("min_size", "max_size", "since", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value

    @classmethod
    def of_source(cls, source: WatchedSource, options: Mapping[str, str]) -> "DiscoveryPolicy":
        """The policy that the settings `discovery.<slug>` make.

        Of a portal whose listing says nothing but names, nothing is taken until the settings waive
        `max_size` or name accessions in `always`.
        Raises `InputRefused` for what cannot be meant.
        """
        slug = source.slug
        for option in options:
            if option not in cls.model_fields:
                nearest = difflib.get_close_matches(option, cls.model_fields, n=1, cutoff=0.0)[0]
                raise InputRefused(
                    f"Read the setting discovery of {slug}",
                    f"there is no option {option!r}",
                    f"The nearest is {nearest}: {cls.model_fields[nearest].description}",
                )
        try:
            return cls.model_validate(
                dict(options) if isinstance(source, DescribingSource) else {**UNDESCRIBED, **options}
            )
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            raise InputRefused(
                f"Read the setting discovery.{slug}.{key}",
                f"{first['input']!r} does not fit: {first['msg']}",
                f"{key}: {cls.model_fields[key].description}",
            ) from error

    def refusal(self, ref: DatasetRef, details: EntryDetails, *, taken_before: bool) -> str:
        """Why an entry is not wanted; empty where it is. Its release date matters only the first time."""
        if ref.accession in self.never:
            return "the list `never` names it"
        if ref.accession in self.always:
            return ""
        if self.since and not taken_before and (ref.released is None or ref.released < self.since):
            if ref.released is None:
                return f"the portal does not say when it was released; `since` asks for {self.since} or later"
            return f"released on {ref.released}, before {self.since} (`since`)"
        return (
            self._other_method(details)
            or self._other_size(details)
            or self._other_licence(details)
            or self._other_kinds(ref.accession, details)
        )

    def fits(self, accession: str, image_set: ImageSet) -> bool:
        """Whether an image set of a wanted entry is one of the kinds asked for."""
        return accession in self.always or not self.categories or _among(image_set.category, self.categories)

    def _other_method(self, details: EntryDetails) -> str:
        if not self.methods or any(self._asks_for(method) for method in details.methods):
            return ""
        return f"imaged by {', '.join(details.methods) or 'an unknown method'}, which is not asked for"

    def _asks_for(self, method: str) -> bool:
        return _among(modality(method), tuple(map(modality, self.methods)))

    def _other_size(self, details: EntryDetails) -> str:
        if self.min_size is None and self.max_size is None:
            return ""
        bounds = [
            f"{word} {bound.human_readable(decimal=True)} (`{rule}`)"
            for rule, word, bound in (
                ("min_size", "at least", self.min_size),
                ("max_size", "at most", self.max_size),
            )
            if bound is not None
        ]
        asked = f"only {' and '.join(bounds)} is taken"
        if details.size is None:
            return f"the portal does not state its size, and {asked}; `none` waives a bound"
        if (self.min_size or 0) <= details.size <= (self.max_size or details.size):
            return ""
        return f"it has {ByteSize(details.size).human_readable(decimal=True)}, and {asked}"

    def _other_licence(self, details: EntryDetails) -> str:
        if not self.licences or (details.licence and _among(details.licence, self.licences)):
            return ""
        return f"its licence is {details.licence or 'not stated'}"

    def _other_kinds(self, accession: str, details: EntryDetails) -> str:
        if not details.image_sets or any(self.fits(accession, one) for one in details.image_sets):
            return ""
        return f"its image sets are {', '.join(sorted({one.category for one in details.image_sets}))}"


def _among(word: str, words: tuple[str, ...]) -> bool:
    """Whether `word` is one of `words` but for case and punctuation."""
    return _plain(word) in {_plain(other) for other in words}


def _plain(word: str) -> str:
    return WORD.sub("", word.lower())
