"""Names that never change: dataset ids, revisions and versions."""

import hashlib
import re

from em_pipeline.domain.errors import InputRefused

DATASET_ID = re.compile(r"^[a-z][a-z0-9]*-[a-z0-9][a-z0-9._-]{0,119}$")
REVISION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


def dataset_id(source: str, accession: str) -> str:
    """`<source>-<accession>` in lower case, every run of other characters than `[a-z0-9._-]` made one `-`.

    An accession that already begins with its source (`EMPIAR-11759`) is not prefixed twice.
    Raises `InputRefused` where nothing usable remains.
    """
    accession = re.sub(r"[^a-z0-9._-]+", "-", accession.lower()).strip("-._")
    accession = accession.removeprefix(f"{source}-")
    return check_dataset_id(f"{source}-{accession}")


def check_dataset_id(value: str) -> str:
    """`value` itself, or `InputRefused` where it is not a dataset id (it becomes a folder and a URL path)."""
    if not DATASET_ID.match(value) or ".." in value:
        raise InputRefused(
            f"Read {value!r} as a dataset id",
            "it is not <source>-<accession> in lower case letters, digits, '.', '_' and '-'",
            "`em ls --all` lists the known ids",
        )
    return value


def check_revision(value: str) -> str:
    """`value` itself, or `InputRefused`: a revision names a folder of the store."""
    if not REVISION.match(value) or ".." in value:
        raise InputRefused(f"Use {value!r} as a revision", "it is not a plain name", "")
    return value


def short_hash(*parts: str) -> str:
    """12 hexadecimal digits of the SHA-256 of the parts, each ended by a zero byte.

    Any text has a hash, also a file name that is not UTF-8 (PEP 383).
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()[:12]
