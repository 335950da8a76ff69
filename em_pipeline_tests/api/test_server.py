"""Running the sidecar as a process: its port, its end."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from em_pipeline.api.server import serve
from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.repository import Catalog
from em_pipeline.domain.errors import InputRefused
from em_pipeline.storage.store import LocalStore

PROGRAM = """
import sys
from pathlib import Path
from em_pipeline.api.server import serve
from em_pipeline.catalog.engine import create_engine_for
from em_pipeline.catalog.repository import Catalog
from em_pipeline.storage.store import LocalStore

catalog = Catalog(create_engine_for("postgresql://em@127.0.0.1:1/em"))
serve("127.0.0.1", 0, catalog, LocalStore(Path(sys.argv[1])), announce=lambda url: print(url, flush=True))
print("closed", flush=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_and_ends_when_asked(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/openapi.json", timeout=20).status_code == 200
        process.send_signal(number)
        assert process.stdout.read() == "closed\n"
        assert process.wait(20) == 0


@pytest.mark.parametrize("port", [None, 70000])
def test_an_address_that_cannot_be_bound(tmp_path: Path, port: int | None) -> None:
    catalog = Catalog(create_engine_for("postgresql://em@127.0.0.1:1/em"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = port or taken.getsockname()[1]
        with pytest.raises(InputRefused, match=f"Listen on 127.0.0.1:{wanted}"):
            serve("127.0.0.1", wanted, catalog, LocalStore(tmp_path))
