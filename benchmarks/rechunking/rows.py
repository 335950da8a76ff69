"""What is compared: the inputs, the contenders of each, and the goals."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

CONTENDERS = Path(__file__).parent / "contenders"


@dataclass(frozen=True)
class Contender:
    """A program: `script` of `contenders`, called with INPUT OUTPUT THREADS and then `arguments`.

    `python` says whose environment it runs in. A limit is called with its name, INPUT and THREADS, writes
    nothing, and reports its own seconds. `needs` is a module without which it cannot run.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    python: Literal["ours", "peers"] = "ours"
    limit: str = ""
    needs: str = "numpy"

    def command(self, python: Path, source: Path, output: Path, threads: int) -> list[str]:
        script = str(CONTENDERS / self.script)
        if self.limit:
            return [str(python), script, self.limit, str(source), str(threads)]
        return [str(python), script, str(source), str(output), str(threads), *self.arguments]


@dataclass(frozen=True)
class Goal:
    """Ours against others: seconds of the fastest of `against`, or of their `together`, over our seconds.

    `at_least` is what that ratio shall be; None where the ratio is only shown.
    """

    against: tuple[str, ...]
    at_least: float | None
    together: bool = False


@dataclass(frozen=True)
class Row:
    """One input, `kind` as in `inputs`, and who writes it. `rss_at_most` is our peak memory's goal, bytes.

    `{shape}` in the title stands for that of the input, which depends on the size asked for.
    """

    name: str
    title: str
    kind: str
    contenders: tuple[Contender, ...]
    goals: tuple[Goal, ...]
    rss_at_most: int

    def of_shape(self, shape: Iterable[int]) -> Self:
        """With the shape of its input (voxels z, y, x) in the title."""
        return replace(self, title=self.title.replace("{shape}", "×".join(map(str, shape))))


OURS = "ours"
SHARDED = Contender("tensorstore, sharded", "with_tensorstore.py", ("sharded",), needs="tensorstore")
UNSHARDED = Contender("tensorstore, unsharded", "with_tensorstore.py", ("unsharded",), needs="tensorstore")
OME_ZARR = Contender("ome-zarr-py", "with_ome_zarr.py", needs="ome_zarr")
IGNEOUS = Contender("igneous", "with_igneous.py", python="peers", needs="igneous")
ENCODE = Contender("encode limit", "limits.py", limit="encode")
DECODE = Contender("decode limit", "limits.py", limit="decode")
READ = Contender("read limit", "limits.py", limit="read")

PEERS = (Goal((OME_ZARR.name,), 10), Goal((IGNEOUS.name,), 15))
LEVEL_0_ALONE = (Goal((SHARDED.name,), 1.0), Goal((UNSHARDED.name,), 1.0))
MB = 1_000_000
USUAL_RSS = 300 * MB


def rows(memory_mib: int) -> tuple[Row, ...]:
    """The table of `docs/benchmarks.md`, ours with a budget of `memory_mib` MiB."""
    ours = Contender(OURS, "ours.py", (str(memory_mib),))
    return (
        Row(
            "tiff",
            "uncompressed TIFF",
            "tiff",
            (ours, SHARDED, UNSHARDED, OME_ZARR, IGNEOUS, ENCODE, READ),
            (*PEERS, *LEVEL_0_ALONE, Goal((ENCODE.name,), 0.5)),
            USUAL_RSS,
        ),
        *(_compressed(ours, name) for name in ("lzw", "deflate")),
        *(
            Row(
                kind,
                f"zarr v2, chunks {chunk}",
                kind,
                (ours, SHARDED, UNSHARDED, READ, ENCODE),
                (*LEVEL_0_ALONE, _both(READ)),
                USUAL_RSS,
            )
            for kind, chunk in (("zarr-64", "64³"), ("zarr-planes", "1×1024×1024"))
        ),
        *(
            Row(kind, title, kind, (ours, READ, ENCODE), (Goal((READ.name,), 0.75), _both(READ)), USUAL_RSS)
            for kind, title in (
                ("dm3", "DM3 stack"),
                ("mrc", "MRC, int8"),
                ("jpeg", "precomputed, jpeg"),
                ("n5", "N5, gzip"),
            )
        ),
        Row(
            "int16",
            "TIFF {shape} int16",
            "int16",
            (ours, ENCODE, READ),
            (Goal((ENCODE.name,), 0.4), _both(READ)),
            1100 * MB,
        ),
    )


def chosen(table: Iterable[Row], only: Iterable[str]) -> tuple[Row, ...]:
    """The rows named, in the table's order; all without names. Raises `ValueError` for an unknown one."""
    table, only = tuple(table), set(only)
    if unknown := only - {row.name for row in table}:
        raise ValueError(f"no row is called {sorted(unknown)}; rows: {', '.join(row.name for row in table)}")
    return tuple(row for row in table if not only or row.name in only)


def _compressed(ours: Contender, compression: str) -> Row:
    return Row(
        f"tiff-{compression}",
        f"{compression.upper() if compression == 'lzw' else compression} TIFF",
        f"tiff-{compression}",
        (ours, DECODE, READ, ENCODE),
        (Goal((DECODE.name,), 0.8), _both(DECODE)),
        USUAL_RSS,
    )


def _both(limit: Contender) -> Goal:
    """What the cores could do at best: decode or read, then encode, one after the other."""
    return Goal((limit.name, ENCODE.name), None, together=True)
