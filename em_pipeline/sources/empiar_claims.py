"""Claims from an EMPIAR entry, whichever of its two documents it was read from."""

from collections.abc import Callable, Iterator, Mapping

from em_pipeline.domain.evidence import Claim
from em_pipeline.domain.spec import Curated
from em_pipeline.sources import free_text
from em_pipeline.sources.claimant import Claimant
from em_pipeline.sources.empiar_entry import Citation, Entry, Said
from em_pipeline.sources.free_text import Reading

# EMPIAR gives pixel sizes in ångström (EMPIAR deposition manual): 80.0 is 8 nm.
NM_PER_ANGSTROM = 0.1
# No document of an entry repeats it.
LICENCE = Curated(
    value="CC0-1.0",
    page="https://www.ebi.ac.uk/empiar/faq",
    read_on="2026-11-20",
    quote="All data in EMPIAR is freely and publicly available … under the CC0 license",
)

# EMPIAR's voxel types (deposition schema, `voxel_type`) → numpy's names.
DATA_TYPES = {
    "UNSIGNED BYTE": "uint8",
    "SIGNED BYTE": "int8",
    "UNSIGNED 16 BIT INTEGER": "uint16",
    "SIGNED 16 BIT INTEGER": "int16",
    "UNSIGNED 32 BIT INTEGER": "uint32",
    "SIGNED 32 BIT INTEGER": "int32",
    "32 BIT FLOAT": "float32",
}
# Experiment types that say which archive an entry relates to, not how it was imaged.
NOT_MODALITIES = frozenset({"EMDB", "OTHER", "SIMULATED"})
# Categories whose images are sections of one volume: their number is its depth.
SECTIONS = frozenset({"reconstructed volumes", "micrographs - single frame"})


def claims_of(entry: Entry, image_set: int, extractor: str) -> list[Claim]:
    """Everything `entry` says of its image set number `image_set`, in no unit but the record's."""
    claimant = Claimant(entry.url, extractor)
    chosen = entry.image_sets[image_set]
    return [
        *_entry_claims(claimant, entry),
        *_geometry_claims(claimant, chosen),
        *_prose_claims(claimant, entry, chosen),
        *_citation_claims(claimant, entry),
    ]


def _entry_claims(claimant: Claimant, entry: Entry) -> Iterator[Claim]:
    if title := entry["title"].text:
        yield claimant.says("core.title", title, entry["title"].at, entry["title"].raw)
    kind = entry["experiment_type"].text
    if kind and kind.upper() not in NOT_MODALITIES:
        yield claimant.says("core.modality", kind, entry["experiment_type"].at, kind)
    if doi := entry["doi"].text:
        yield claimant.says("rights.doi", doi, entry["doi"].at, doi)


def _geometry_claims(claimant: Claimant, chosen: Mapping[str, Said]) -> Iterator[Claim]:
    depth = _depth(chosen)
    if depth is not None:
        yield claimant.says("core.volume_shape.z", depth, chosen["images"].at, chosen["images"].raw)
    for axis, name in (("y", "height"), ("x", "width")):
        if (count := chosen[name].count) is not None:
            yield claimant.says(f"core.volume_shape.{axis}", count, chosen[name].at, chosen[name].raw)
    for axis, name in (("y", "pixel_height"), ("x", "pixel_width")):
        if (size := chosen[name].number) is not None:
            yield claimant.says(
                f"core.voxel_size_nm.{axis}",
                size * NM_PER_ANGSTROM,
                chosen[name].at,
                chosen[name].raw,
                "given in ångström",
            )
    if (pixel := chosen["pixel_width"]).number is not None:
        # EMPIAR states the number alone.
        yield claimant.says("core.unit", "Å", pixel.at, pixel.raw, "EMPIAR gives pixel sizes in ångström")
    voxel_type = chosen["voxel_type"]
    if (data_type := DATA_TYPES.get((voxel_type.text or "").upper())) is not None:
        yield claimant.says("core.data_type", data_type, voxel_type.at, voxel_type.raw)
    if data_format := chosen["data_format"].text:
        yield claimant.says("technical.file_format", data_format, chosen["data_format"].at, data_format)


def _depth(chosen: Mapping[str, Said]) -> int | None:
    """Sections of the volume: images times frames. One of one says only that a single file holds it all."""
    images, frames = chosen["images"].count, chosen["frames"].count or 1
    if images is None or images * frames == 1 or (chosen["category"].text or "").lower() not in SECTIONS:
        return None
    return images * frames


_PROSE: tuple[tuple[str, Callable[[str], Reading | None]], ...] = (
    ("core.voxel_size_nm.z", free_text.section_thickness_nm),
    ("acquisition.accelerating_voltage_kv", free_text.accelerating_voltage_kv),
    ("acquisition.beam_current_pa", free_text.beam_current_pa),
    ("acquisition.dwell_time_us", free_text.dwell_time_us),
    ("acquisition.scan_rate_mhz", free_text.scan_rate_mhz),
    ("acquisition.magnification", free_text.magnification),
    ("acquisition.bias_v", free_text.bias_v),
    ("acquisition.duration_days", free_text.duration_days),
    ("acquisition.microscope", free_text.microscope),
)
_SPECIMEN: tuple[tuple[str, Callable[[str], Reading | None]], ...] = (
    ("sample.organism", free_text.organism),
    ("sample.tissue", free_text.tissue),
)


def _prose_claims(claimant: Claimant, entry: Entry, chosen: Mapping[str, Said]) -> Iterator[Claim]:
    details = chosen["details"]
    if details.text:
        yield claimant.says("core.description", details.text, details.at, details.raw)
    citation = [entry.citation.details] if entry.citation else []
    for readers, texts in (
        (_PROSE, [details, *citation]),
        (_SPECIMEN, [entry["title"], chosen["name"], details]),
    ):
        for field, reader in readers:
            for said in texts:
                reading = reader(said.text or "")
                if reading is not None:
                    yield claimant.says(field, reading.value, said.at, reading.quote, "read from free text")
                    break


def _citation_claims(claimant: Claimant, entry: Entry) -> Iterator[Claim]:
    citation = entry.citation
    if citation is None or not citation.title.text:
        return
    yield claimant.says(
        "rights.citation", _cited(citation, entry), citation.title.at, citation.title.raw, "put together"
    )


def _cited(citation: Citation, entry: Entry) -> str:
    """Authors, title, journal and year, DOI; an unpublished deposition is cited by its own DOI and year."""
    year = citation.year.text or (entry["released"].text or "")[:4]
    doi = citation.doi.text or entry["doi"].text
    parts = [
        f"{', '.join(citation.authors)} ({year})" if citation.authors else f"({year})",
        (citation.title.text or "").rstrip("."),
        citation.journal.text or "EMPIAR",
        f"https://doi.org/{doi}" if doi else "",
    ]
    return ". ".join(part for part in parts if part)
