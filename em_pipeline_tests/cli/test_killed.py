"""An ingest killed at any moment and run again: the same bytes, and nothing fetched twice."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from em_pipeline.demo.portal import DemoPortal
from em_pipeline_tests.commands import BIN, em, run
from em_pipeline_tests.ingest.chain import hashes

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ID = "empiar-11759"


@dataclass(frozen=True)
class Moment:
    """When so many files of the home match a pattern."""

    pattern: str
    count: int = 1

    def is_due(self, home: Path) -> bool:
        return len(list(home.glob(self.pattern))) >= self.count


# What the store holds when the next kill falls, in the order in which an ingest makes it.
MOMENTS = {
    "record kept": Moment(f"store/raw/{ID}/*/record.json"),
    "first files held": Moment(f"store/raw/{ID}/*/files/*.dm3", 2),
    "all files held": Moment(f"store/raw/{ID}/*/manifest.json"),
    "volume begun": Moment(f"store/staging/{ID}/*/work"),
    "volume written": Moment(f"store/staging/{ID}/*/ledger.parquet"),
    "record of the volume": Moment(f"store/staging/{ID}/*/record.json"),
    "validated": Moment(f"store/staging/{ID}/*/report.json"),
    "publication begun": Moment(f"store/volumes/{ID}/*.ledger.parquet"),
    "volume moved": Moment(f"store/volumes/{ID}/*.ome.zarr"),
}

# Read by Python when it starts: once the moment is there, the process ends itself, with no chance to clean
# up, in place of renaming something or making a folder.
SITE = """
import os, signal, sys
from pathlib import Path
home, pattern, count = Path(os.environ["EM_HOME"]), os.environ["KILLED_AT"], int(os.environ["KILLED_COUNT"])
def hook(event, args):
    if event in ("os.rename", "os.mkdir") and str(home) in str(args[0]):
        if len(list(home.glob(pattern))) >= count:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


def killed_at(environment: dict[str, str], moment: Moment, site: Path) -> bool:
    """Whether an ingest killed itself at the moment; `site` holds `SITE`."""
    path = os.pathsep.join(filter(None, [str(site), environment.get("PYTHONPATH")]))
    told = {"PYTHONPATH": path, "KILLED_AT": moment.pattern, "KILLED_COUNT": str(moment.count)}
    done = run({**environment, **told}, "em", "ingest", ID)
    return done.returncode == -signal.SIGKILL


def kill_after(environment: dict[str, str], seconds: float) -> None:
    """Run an ingest for so long, unless it ends before, then SIGKILL it."""
    with subprocess.Popen(
        [str(BIN / "em"), "ingest", ID],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()


def visible(environment: dict[str, str]) -> list[str]:
    return [row["dataset_id"] for row in em(environment, "ls")]


@pytest.fixture
def clean(environment: dict[str, str], database_url: str) -> dict[str, str]:
    """Hashes of a volume that was ingested without a kill, in a home of its own."""
    elsewhere = {**environment, "EM_HOME": f"{environment['EM_HOME']}-clean", "EM_DATABASE_URL": ""}
    del elsewhere["EM_DATABASE_URL"]
    done = run(elsewhere, "em", "ingest", ID)
    assert done.returncode == 0, done.stderr
    return hashes(Path(elsewhere["EM_HOME"]) / "store" / "volumes")


@pytest.fixture(autouse=True)
def _passable(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)  # as root, the embedded server runs as another user, who has to pass


def dm3_requests(portal: DemoPortal) -> int:
    return sum(count for path, count in portal.requests.items() if path.endswith(".dm3"))


def test_killed_at_every_step(
    environment: dict[str, str], clean: dict[str, str], portal: DemoPortal, tmp_path: Path
) -> None:
    home = Path(environment["EM_HOME"])
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    sizes = sum(path.stat().st_size for path in portal.tree.rglob("*.dm3"))
    before = portal.bytes_served
    for name, moment in MOMENTS.items():
        assert not moment.is_due(home), name
        assert killed_at(environment, moment, site), name
        assert moment.is_due(home), name
    served_until_held = portal.bytes_served - before
    done = run(environment, "em", "ingest", ID)
    assert done.returncode == 0, done.stderr
    assert hashes(home / "store" / "volumes") == clean
    # At most the files under way at the two kills while downloading are asked for again.
    largest = max(path.stat().st_size for path in portal.tree.rglob("*.dm3"))
    documents = 200_000
    assert served_until_held <= sizes + 2 * 4 * largest + documents
    assert not list((home / "store" / "staging").rglob("*.parquet"))
    assert em(environment, "verify", ID)["faults"] == []


def test_killed_at_random_moments(environment: dict[str, str], clean: dict[str, str]) -> None:
    home = Path(environment["EM_HOME"])
    chance = random.Random(11759)
    for _ in range(6):
        kill_after(environment, chance.uniform(1.0, 5.0))
        published = visible(environment)
        assert published in ([], [ID])
        if published:
            assert em(environment, "verify", ID)["faults"] == []
    done = run(environment, "em", "ingest", ID)
    assert done.returncode == 0, done.stderr
    assert hashes(home / "store" / "volumes") == clean


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ingest_says_so_and_continues(
    environment: dict[str, str], clean: dict[str, str], signum: signal.Signals
) -> None:
    home = Path(environment["EM_HOME"])
    moment = MOMENTS["first files held"]
    with subprocess.Popen(
        [str(BIN / "em"), "ingest", ID], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not moment.is_due(home) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signum)
        _, said = process.communicate(timeout=180)
    assert process.returncode == 130, said
    assert "Run the same command again" in said
    status = {row["dataset_id"]: row["status"] for row in em(environment, "ls", "--all")}
    assert status[ID] == "cancelled"
    assert run(environment, "em", "ingest", ID).returncode == 0
    assert hashes(home / "store" / "volumes") == clean


def test_two_at_once_do_not_harm_each_other(environment: dict[str, str], clean: dict[str, str]) -> None:
    home = Path(environment["EM_HOME"])
    command = [str(BIN / "em"), "ingest", ID]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    codes = []
    for process in both:
        process.communicate(timeout=300)
        codes.append(process.returncode)
    assert set(codes) <= {0, 10}, codes
    assert 0 in codes
    assert hashes(home / "store" / "volumes") == clean


def test_ctrl_c_is_answered_by_nothing_but_our_own_words(environment: dict[str, str]) -> None:
    home = Path(environment["EM_HOME"])
    moment = MOMENTS["first files held"]
    with subprocess.Popen(
        [str(BIN / "em"), "ingest", ID],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not moment.is_due(home) and process.poll() is None:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the command
        _, said = process.communicate(timeout=180)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "Interrupted. Run the same command again to continue where it stopped."
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
