"""Every setting of the pipeline, where its value came from, and nothing else.

Order: the default, then `em.yaml` (in the working folder, or where `EM_CONFIG` points; strings may hold
`${VAR}` and `${VAR:default}`), then the environment (`EM_<KEY>`; `EM_SOURCES__<SLUG>__<OPTION>` for a
source's own options, `EM_DISCOVERY__<SLUG>__<OPTION>` for what its sensor takes). A key or value that cannot
be meant is refused with the nearest one that can.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.wording import binary_size
from em_pipeline.limits import available_cores, available_memory

CONFIG_FILE = "em.yaml"
PREFIX = "EM_"
# Settings that hold options by the slug of a source.
BY_SOURCE = ("sources", "discovery")
# Settings that are folders of this machine.
FOLDERS = ("home", "spool", "dagster_home")
SOURCE_GROUP = "em_pipeline.sources"
# Names that begin with the prefix but are not settings of a run.
NOT_SETTINGS = frozenset({"EM_CONFIG", "EM_SHARED_DATA"})
# SQLAlchemy's form of a URL, with a port that is a number and brackets only around an IPv6 address.
DATABASE_URL = re.compile(
    r"[\w+]+://([^:/]*(:[^@]*)?@)?(\[[^\]/?]+\]|[^:/?\[\]@]*)(:\d*)?([/?].*)?", re.ASCII | re.DOTALL
)
SCHEDULER = re.compile(r"(tcp|tls)://(\[[^\]/]+\]|[^:/\[\]]+):\d+", re.ASCII)
PASSWORD = re.compile(r"(://[^:/@]*):.*@", re.DOTALL)
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")


class Executor(StrEnum):
    """How one Dagster run executes its steps."""

    IN_PROCESS = "in-process"
    MULTIPROCESS = "multiprocess"


class ComputeBackend(StrEnum):
    """What writes the units of a volume."""

    THREADS = "threads"
    DASK = "dask"


CHOICES: Mapping[str, type[StrEnum]] = {"executor": Executor, "compute": ComputeBackend}


def default_home() -> Path:
    """`$XDG_DATA_HOME/em-pipeline`, by default `~/.local/share/em-pipeline` (XDG Base Directory)."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "em-pipeline"


LEAST_MEMORY: Final = 256 << 20
"""Bytes: what a process takes before it rechunks (`volumes.memory.PROCESS_BYTES`) and the least on top."""
USUAL_MEMORY: Final = 1 << 30


def default_memory_budget() -> ByteSize:
    """1 GiB, but no more than half of the memory there is: the rest is for the page cache and others."""
    available = available_memory()
    half = USUAL_MEMORY if available is None else available // 2
    return ByteSize(max(LEAST_MEMORY, min(USUAL_MEMORY, half)))


class Settings(BaseModel):
    """The settings. Empty URLs stand for the embedded default below `home`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    home: Path = Field(default_factory=default_home, description="folder of everything embedded")
    store_url: str = Field(default="", description="where raw files and volumes live; default <home>/store")
    store_endpoint: str = Field(
        default="",
        description="http(s) base of the store's S3 or Google; default s3_endpoint or gs_endpoint",
    )
    direct_io: bool = Field(
        default=True, description="write volumes on a disk past the page cache, where the file system can"
    )
    spool: Path | None = Field(
        default=None, description="folder for raw files bound for an object store; default <home>/spool"
    )
    database_url: str = Field(default="", description="PostgreSQL of the catalogue; default embedded")
    dagster_home: Path | None = Field(default=None, description="Dagster's folder; default <home>/dagster")
    executor: Executor = Field(default=Executor.IN_PROCESS, description="in-process or multiprocess")
    threads: int = Field(default_factory=available_cores, ge=1, le=1024, description="compute threads")
    compute: ComputeBackend = Field(
        default=ComputeBackend.THREADS, description="threads of this process, or dask: workers of a scheduler"
    )
    dask_scheduler: str = Field(
        default="", description="tcp://<host>:<port> of the Dask scheduler that compute: dask needs"
    )
    memory_budget: ByteSize = Field(
        default_factory=default_memory_budget,
        ge=LEAST_MEMORY,
        description="bytes that a process may hold while it rechunks, such as 1GiB; at least 256MiB; default "
        "1GiB, or half of the memory there is",
    )
    download_connections: int = Field(default=4, ge=1, le=64, description="connections per host")
    download_timeout_s: float = Field(default=12.0, gt=0, le=600, description="silence before asking again")
    download_retries: int = Field(default=6, ge=0, le=100, description="attempts after the first")
    s3_endpoint: str = Field(default="", description="http(s) base of what speaks S3; default AWS")
    s3_region: str = Field(default="", description="region of the S3 buckets read from; default found by AWS")
    s3_anonymous: bool = Field(
        default=True, description="read S3 without credentials; false signs with those that AWS's tools use"
    )
    gs_endpoint: str = Field(
        default="https://storage.googleapis.com", description="http(s) base of Google's store"
    )
    api_host: str = Field(default="127.0.0.1", min_length=1, description="address the sidecar binds")
    api_port: int = Field(default=8000, ge=0, le=65535, description="port the sidecar binds; 0 picks one")
    sources: dict[str, dict[str, str]] = Field(default={}, description="options of sources, by slug")
    discovery: dict[str, dict[str, str]] = Field(
        default={}, description="which new entries a source's sensor takes, by slug"
    )

    @field_validator("database_url")
    @classmethod
    def _is_a_database_url(cls, url: str) -> str:
        if url and not DATABASE_URL.fullmatch(url):
            raise ValueError("it is not postgresql://<user>:<password>@<host>:<port>/<database>")
        return url

    @field_validator("dask_scheduler")
    @classmethod
    def _is_a_scheduler(cls, address: str, info: ValidationInfo) -> str:
        if address and not SCHEDULER.fullmatch(address):
            raise ValueError("it is not tcp://<host>:<port> or tls://<host>:<port>")
        if not address and info.data.get("compute") is ComputeBackend.DASK:
            raise ValueError("compute is dask, which needs one")
        return address

    @field_validator(*BY_SOURCE, mode="before")
    @classmethod
    def _options_are_text(cls, sources: Any) -> Any:
        """YAML reads `retries: 3` as a number; sources take text, as the environment gives it."""
        if not isinstance(sources, dict):
            return sources
        return {
            slug: {str(key): str(value) for key, value in options.items()}
            if isinstance(options, dict)
            else options
            for slug, options in sources.items()
        }

    @field_validator(*BY_SOURCE)
    @classmethod
    def _sources_are_installed(cls, sources: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        installed = sorted(entry.name for entry in entry_points(group=SOURCE_GROUP))
        for slug in sources:
            if slug not in installed:
                nearest = difflib.get_close_matches(slug, installed, n=1, cutoff=0.0)[0]
                raise ValueError(f"no source {slug!r} is installed; the nearest is {nearest}")
        return sources

    @property
    def store(self) -> str:
        return self.store_url or (self.home / "store").as_uri()

    @property
    def spool_folder(self) -> Path:
        return self.spool or self.home / "spool"

    @property
    def postgres_folder(self) -> Path:
        return self.home / "postgres"

    @property
    def dagster_folder(self) -> Path:
        return self.dagster_home or self.home / "dagster"


@dataclass(frozen=True)
class LoadedSettings:
    """Settings, and for each key the place its value was read from."""

    settings: Settings
    provenance: dict[str, str]

    def shown(self) -> list[tuple[str, str, str]]:
        """(key, value in force, where from) of every setting; passwords in URLs are masked."""
        in_force = {
            "store_url": self.settings.store,
            "spool": self.settings.spool_folder,
            "database_url": self.settings.database_url or f"embedded in {self.settings.postgres_folder}",
            "dagster_home": self.settings.dagster_folder,
            "memory_budget": self.settings.memory_budget.human_readable(),
        }
        return [
            (
                key,
                _masked(in_force.get(key, getattr(self.settings, key))),
                self.provenance.get(key, "default"),
            )
            for key in Settings.model_fields
        ]


def load_settings(folder: Path | None = None, environ: Mapping[str, str] | None = None) -> LoadedSettings:
    """Read the settings as a process started in `folder` with `environ` would.

    Raises `InputRefused` for an unknown key, a value that does not fit, an unset `${VAR}`, or a file that
    is not a YAML mapping.
    """
    folder = folder or Path.cwd()
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    path = Path(environ.get("EM_CONFIG") or folder / CONFIG_FILE)
    if path.exists() or "EM_CONFIG" in environ:
        for key, value in _read_yaml(path, environ).items():
            values[_known(key, f"key in {path}")] = value
            provenance[key] = str(path)
    for variable in sorted(environ):
        # An empty variable is one that was not set, as shells and compose files leave them.
        if variable.startswith(PREFIX) and variable not in NOT_SETTINGS and environ[variable]:
            _apply_variable(variable, environ[variable], values, provenance)
    if not values.get("dagster_home") and environ.get("DAGSTER_HOME"):
        values["dagster_home"] = environ["DAGSTER_HOME"]
        provenance["dagster_home"] = "DAGSTER_HOME in the environment"
    for key in (key for key in FOLDERS if key in values):
        values[key] = _folder(folder, str(values[key]), f"{key} from {provenance[key]}")
    return LoadedSettings(_validated(values, provenance), provenance)


def _folder(folder: Path, text: str, setting: str) -> Path:
    """The folder that `text` names: `~` is the home folder, and what is relative begins in `folder`."""
    try:
        return (folder / Path(text).expanduser()).resolve()
    # RuntimeError: an unknown user after `~`, or a loop of links; ValueError: a NUL.
    except (RuntimeError, ValueError, OSError) as error:
        raise InputRefused(
            f"Read the setting {setting}", f"{text!r}: {error}", "Give the path of a folder"
        ) from error


def _apply_variable(name: str, text: str, values: dict[str, Any], provenance: dict[str, str]) -> None:
    key, *path = name.removeprefix(PREFIX).lower().split("__")
    _known(key, "environment variable", spelled=name)
    if key in BY_SOURCE:
        if len(path) != 2:
            raise InputRefused(
                f"Read the environment variable {name}",
                "a source's option is named by its slug and its key",
                f"Write it as {PREFIX}{key.upper()}__<SLUG>__<OPTION>",
            )
        slug, option = path
        sources = values.get(key, {})
        options = sources.get(slug, {}) if isinstance(sources, dict) else None
        if not isinstance(options, dict):
            raise InputRefused(
                f"Add {name} to the setting {key} from {provenance[key]}",
                f"that is no mapping of source to options, but {_masked(sources)}",
                f"Write it as `{key}: {{{slug}: {{{option}: …}}}}`",
            )
        values[key] = {**sources, slug: {**options, option: text}}
    elif path:
        raise InputRefused(f"Read the environment variable {name}", f"{key} has no parts", "")
    else:
        values[key] = text
    provenance[key] = f"{name} in the environment"


def _read_yaml(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputRefused(f"Read the settings in {path}", error.strerror or str(error), "") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputRefused(
            f"Read the settings in {path}", f"not YAML: {error}", "Correct the file"
        ) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputRefused(f"Read the settings in {path}", "not a mapping", "Write `key: value` lines")
    return {str(key): value for key, value in _interpolated(document, environ, path).items()}


def _interpolated(value: Any, environ: Mapping[str, str], path: Path) -> Any:
    if isinstance(value, dict):
        # A key without a value is one that was not set.
        return {key: _interpolated(part, environ, path) for key, part in value.items() if part is not None}
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = environ.get(name, default)
        if found is None:
            raise InputRefused(
                f"Read the settings in {path}",
                f"${{{name}}} is not set and has no default",
                f"Set {name}, or write ${{{name}:default}}",
            )
        return found

    return REFERENCE.sub(replace, value)


def _known(key: str, what: str, spelled: str | None = None) -> str:
    if key in Settings.model_fields:
        return key
    nearest = difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.0)[0]
    shown = f"{PREFIX}{nearest.upper()}" if spelled else nearest
    raise InputRefused(
        "Read the settings", f"{what} {spelled or key!r} is not a setting", f"The nearest is {shown}"
    )


def _validated(values: dict[str, Any], provenance: dict[str, str]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        to_do = f"{key}: {Settings.model_fields[key].description}"
        if key in CHOICES:
            to_do = f"Give one of: {', '.join(CHOICES[key])}"
        raise InputRefused(
            f"Read the setting {key} from {provenance.get(key, 'its default')}",
            # What is no URL may still hold a password, in a place we cannot tell.
            f"{'the value' if key == 'database_url' else repr(first['input'])} does not fit: {_fault(first)}",
            to_do,
        ) from error


_BOUNDS = {
    "greater_than_equal": ("ge", "less than"),
    "greater_than": ("gt", "not more than"),
    "less_than_equal": ("le", "more than"),
}
_NO_SUCH = {
    "int_parsing": "it is no whole number",
    "int_from_float": "it is no whole number",
    "float_parsing": "it is no number",
    "bool_parsing": "it is neither true nor false",
    "enum": "it is none of the choices",
}


def _fault(error: ErrorDetails) -> str:
    """What is wrong with a value, without what pydantic puts before or in place of our words."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in ("byte_size", "byte_size_unit"):
        return "it is no number of bytes, KiB, MiB, GiB or TiB"
    if error["type"] in _BOUNDS:
        bound, beyond = _BOUNDS[error["type"]]
        limit = error["ctx"][bound]
        return f"it is {beyond} {binary_size(limit) if error['loc'] == ('memory_budget',) else limit}"
    return _NO_SUCH.get(error["type"], error["msg"])


def _masked(value: object) -> str:
    """`value` as text without the passwords of its URLs. A password ends at the last `@`."""
    if isinstance(value, dict):
        return str({key: _masked(part) for key, part in value.items()})
    return "" if value is None else PASSWORD.sub(r"\1:***@", str(value))
