"""Which sources there are: entry points of the group `em_pipeline.sources`, checked once at start."""

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from em_pipeline.domain.errors import EmError, InputRefused
from em_pipeline.settings import SOURCE_GROUP
from em_pipeline.sources.base import Source
from em_pipeline.storage.object_urls import PUBLIC, ObjectEndpoints

SLUG = re.compile(r"^[a-z][a-z0-9]*$")

# The constructor argument that is no option of one source, but the same for all.
ENDPOINTS = "endpoints"

# Source slug → keyword arguments of its constructor, as `settings.Settings.sources` holds them.
SourceSettings = Mapping[str, Mapping[str, str]]


class SourceNotLoaded(EmError):
    """An installed source cannot be used; the message names its entry point."""

    exit_code = 2
    slug = "source-not-loaded"


def load_sources(
    settings: SourceSettings | None = None,
    found: Iterable[EntryPoint] | None = None,
    *,
    endpoints: ObjectEndpoints = PUBLIC,
) -> dict[str, Source]:
    """Slug → source, of every installed entry point of the group, in the order of their slugs.

    `settings` are constructor arguments by slug; `endpoints` reach every source whose constructor takes them.
    Raises `SourceNotLoaded` for an entry point that cannot be
    imported or built, whose object is not a `Source`, or whose slug is taken; `InputRefused` for settings
    of a source that is not installed, or an option that it does not have.
    """
    options = settings or {}
    entries = list(entry_points(group=SOURCE_GROUP) if found is None else found)
    _check_settings(options, {entry.name for entry in entries})
    sources: dict[str, Source] = {}
    owners: dict[str, EntryPoint] = {}
    for entry in entries:
        source = _load(entry, options.get(entry.name, {}), endpoints)
        if source.slug in sources:
            raise SourceNotLoaded(
                f"Load the source {_shown(entry)}",
                f"its slug {source.slug!r} is already that of {_shown(owners[source.slug])}",
                "Uninstall one of the two packages, or give its source another slug",
            )
        if source.slug != entry.name:
            raise SourceNotLoaded(
                f"Load the source {_shown(entry)}",
                f"its slug is {source.slug!r}, but the entry point is named {entry.name!r}",
                "Give both the same name",
            )
        sources[source.slug], owners[source.slug] = source, entry
    return dict(sorted(sources.items()))


def _load(entry: EntryPoint, options: Mapping[str, str], endpoints: ObjectEndpoints) -> Source:
    tried = f"Load the source {_shown(entry)}"
    try:
        factory = entry.load()
    except (ImportError, AttributeError, SyntaxError, NameError, TypeError, ValueError, OSError) as error:
        raise SourceNotLoaded(
            tried, f"{type(error).__name__}: {error}", "Repair or uninstall the package that brings it"
        ) from error
    if not callable(factory):
        raise SourceNotLoaded(tried, f"it is {factory!r}, not a class or function that makes a source", "")
    _check_options(entry, factory, options)
    try:
        stores = {ENDPOINTS: endpoints} if ENDPOINTS in inspect.signature(factory).parameters else {}
        source = factory(**options, **stores)
    except (TypeError, ValueError) as error:
        raise SourceNotLoaded(
            tried, f"{type(error).__name__}: {error}", f"Check its settings: {dict(options)}"
        ) from error
    if isinstance(source, type) or not isinstance(source, Source):
        missing = sorted(name for name in _members() if not hasattr(source, name))
        raise SourceNotLoaded(
            tried,
            f"{type(source).__name__} is no Source; it lacks {', '.join(missing) or 'an instance'}",
            "See em_pipeline/sources/base.py and docs/add-a-source.md",
        )
    if not SLUG.match(source.slug):
        raise SourceNotLoaded(
            tried, f"its slug {source.slug!r} is not lower-case letters and digits", "Rename it"
        )
    return source


def _members() -> set[str]:
    methods = {name for name, _ in inspect.getmembers(Source, inspect.isfunction) if not name.startswith("_")}
    return methods | set(Source.__annotations__)


def _check_settings(options: SourceSettings, installed: set[str]) -> None:
    for slug in options:
        if slug not in installed:
            raise InputRefused(
                f"Read the settings of the source {slug!r}",
                "no such source is installed",
                f"The sources are {', '.join(sorted(installed))}",
            )


def _check_options(entry: EntryPoint, factory: object, options: Mapping[str, str]) -> None:
    if not options or not callable(factory):
        return
    parameters = {k: v for k, v in inspect.signature(factory).parameters.items() if k != ENDPOINTS}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            nearest = next(iter(difflib.get_close_matches(option, parameters, n=1, cutoff=0.0)), "")
            raise InputRefused(
                f"Read the settings of the source {entry.name!r}",
                f"it has no option {option!r}",
                f"The nearest is {nearest}; its options are {', '.join(parameters)}"
                if parameters
                else "It has no options",
            )


def _shown(entry: EntryPoint) -> str:
    return f"{entry.name} = {entry.value}"
