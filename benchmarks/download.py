"""Ours against `aria2c -x16` where a portal is slow and forgetful.

    python benchmarks/download.py [--size-mib 320] [--repetitions 5] [--first-seed 0]

A server on this machine gives each connection 1.5 MB/s and never answers one range request in thirty, as
EBI's was measured to do. `aria2c` runs with `-x16` alone, with 16 splits too, and with its best flags. All
download the same file in turns, with the same luck: the n-th request of a repetition hangs for the one if it
hangs for the other. Wall times include the start of each program; ours also hashes.
"""

import argparse
import asyncio
import filecmp
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

BYTES_PER_SECOND = 1.5e6
HANGS_IN = 30
BLOCK = 32 * 1024
CONNECTIONS = 16
MIB = 1 << 20

OURS = """
import sys
from pathlib import Path
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.progress import Silent
from em_pipeline.storage.download import DownloadPolicy, download
url, folder, size, connections = sys.argv[1:]
files = [RemoteFile(url=url, path="file", size=int(size))]
policy = DownloadPolicy(connections=int(connections))
download(files, Path(folder), dataset_id="files-a", revision="r", policy=policy, progress=Silent())
"""
# -x16 allows 16 connections to a server; how many pieces there are to fetch stays at its default of 5 (-s).
LITERAL_ARIA2 = ("aria2c", "--quiet", "-x16", "-o", "file")
SPLIT_ARIA2 = (*LITERAL_ARIA2, "-s16")
PATIENT_ARIA2 = (
    *SPLIT_ARIA2,
    "--min-split-size=1M",
    "--timeout=12",
    "--connect-timeout=10",
    "--max-tries=0",
    "--retry-wait=1",
    "--lowest-speed-limit=100K",
)


@dataclass
class Portal:
    """Sends one file, range by range. `sent` counts body bytes, `hung` the requests that got no answer."""

    data: memoryview
    dice: random.Random = field(default_factory=random.Random)
    sent: int = 0
    requests: int = 0
    hung: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self.answer(head.decode(), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        if self.dice.randrange(HANGS_IN) == 0:
            self.hung += 1
            await asyncio.sleep(3600)
        first, last, size = 0, len(self.data) - 1, len(self.data)
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "range":
                start, stop = value.strip().removeprefix("bytes=").split("-")
                first, last = int(start), int(stop) if stop else last
        writer.write(
            f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}\r\n"
            f'Content-Length: {last + 1 - first}\r\nETag: "1"\r\nAccept-Ranges: bytes\r\n\r\n'.encode()
        )
        if head.startswith("GET"):
            await self.send(self.data[first : last + 1], writer)

    async def send(self, body: memoryview, writer: asyncio.StreamWriter) -> None:
        began = time.monotonic()
        for at in range(0, len(body), BLOCK):
            await asyncio.sleep(max(0.0, began + at / BYTES_PER_SECOND - time.monotonic()))
            writer.write(body[at : at + BLOCK])
            await writer.drain()
            self.sent += len(body[at : at + BLOCK])


def serve(data: Path, control: Connection) -> None:
    """Run the portal; each seed that arrives begins a new count, whose end is asked for with None."""

    async def run() -> None:
        portal = Portal(memoryview(data.read_bytes()))
        server = await asyncio.start_server(portal.serve, "127.0.0.1", 0, limit=BLOCK)
        control.send(server.sockets[0].getsockname()[1])
        while True:
            seed = await asyncio.to_thread(control.recv)
            if seed is None:
                control.send((portal.sent, portal.requests, portal.hung))
                continue
            portal.dice, portal.sent, portal.requests, portal.hung = random.Random(seed), 0, 0, 0

    asyncio.run(run())


@dataclass
class Run:
    """One download: `seconds` of wall time, whether the file is right, and what the portal sent."""

    seconds: float
    finished: bool
    sent: int
    requests: int
    hung: int


def measure(
    command: list[str], folder: Path, data: Path, seed: int, control: Connection, limit_s: float
) -> Run:
    folder.mkdir()
    control.send(seed)
    began = time.perf_counter()
    try:
        code = subprocess.run(command, cwd=folder, timeout=limit_s, check=False).returncode
    except subprocess.TimeoutExpired:
        code = -1
    seconds = time.perf_counter() - began
    control.send(None)
    sent, requests, hung = control.recv()
    finished = code == 0 and filecmp.cmp(folder / "file", data, shallow=False)
    shutil.rmtree(folder)
    return Run(seconds, finished, sent, requests, hung)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=320)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="the luck of the first repetition")
    parser.add_argument("--limit-s", type=float, default=180, help="when a download counts as not finished")
    asked = parser.parse_args()
    size = asked.size_mib * MIB
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.write_bytes(os.urandom(size))
        control, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(data, theirs), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{control.recv()}/file"
        commands = {
            "ours": [sys.executable, "-c", OURS, url, ".", str(size), str(CONNECTIONS)],
            "aria2c -x16": [*LITERAL_ARIA2, url],
            "aria2c -x16 -s16": [*SPLIT_ARIA2, url],
            "aria2c, its best flags": [*PATIENT_ARIA2, url],
        }
        for seed in range(asked.first_seed, asked.first_seed + asked.repetitions):
            for name, command in commands.items():
                run = measure(command, Path(scratch) / "run", data, seed, control, asked.limit_s)
                runs.setdefault(name, []).append(run)
                print(json.dumps({"seed": seed, "name": name, **vars(run)}), flush=True)
        server.terminate()
    report(runs, size)


def report(runs: dict[str, list[Run]], size: int) -> None:
    ours = statistics.median(run.seconds for run in runs["ours"])
    ideal = size / (CONNECTIONS * BYTES_PER_SECOND)
    print(f"\n{size / MIB:.0f} MiB; at {CONNECTIONS} × {BYTES_PER_SECOND / 1e6} MB/s it takes {ideal:.1f} s")
    titles = ("median s", "mean s", "slowest s", "ours is", "finished", "sent twice", "hung")
    print(" " * 24 + "".join(f"{title:>11}" for title in titles))
    for name, each in runs.items():
        median = statistics.median(run.seconds for run in each)
        again = statistics.median(run.sent - size for run in each)
        shown = (
            f"{median:.2f}",
            f"{statistics.mean(run.seconds for run in each):.2f}",
            f"{max(run.seconds for run in each):.1f}",
            f"{median / ours:.2f}×",
            f"{sum(run.finished for run in each)} of {len(each)}",
            f"{again / MIB:.1f} MiB",
            f"{sum(run.hung for run in each)}",
        )
        print(f"{name:24}" + "".join(f"{text:>11}" for text in shown))


if __name__ == "__main__":
    main()
