"""Entries of the demonstration's IDR, and other answers that it may give."""

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from em_pipeline.demo.idr_entries import image_object
from em_pipeline.demo.idr_portal import IMAGE_BY_ID, SHAPE, IdrPortal
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.sources.base import PortalRecord

CHROMATIN = DatasetSpec(source="idr", accession="9846137")
INSET = DatasetSpec(source="idr", accession="9846132")
IMAGE = "/api/v0/m/images/9846137/"
TABLE = "/IDR/idr0086-miron-micrographs/HEAD/experimentD/idr0086-experimentD-filePaths.tsv"
ANNOTATIONS = "/webclient/api/annotations/"
NAME = "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif"
BOX = BoundingBox.at((100, 300, 500), (1, 1, 1))


def said(record: PortalRecord, field: str) -> list[object]:
    return [claim.value for claim in record.claims if claim.field == field]


@contextmanager
def ftp_server(folder: Path) -> Iterator[str]:
    """An anonymous FTP server for a folder; its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it is built on asyncore
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import FTPHandler
        from pyftpdlib.servers import ThreadedFTPServer

    authorizer = DummyAuthorizer()
    authorizer.add_anonymous(str(folder))
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
    server = ThreadedFTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"ftp://127.0.0.1:{server.address[1]}"
    finally:
        server.close_all()
        thread.join(5)


def say(portal: IdrPortal, **pixels: Any) -> None:
    """The chromatin's answer with other pixels; a value of None takes the key away."""
    answer = {"data": image_object(IMAGE_BY_ID[9846137], SHAPE)}
    answer["data"]["Pixels"] |= pixels
    answer["data"]["Pixels"] = {k: v for k, v in answer["data"]["Pixels"].items() if v is not None}
    portal.replace(IMAGE, json.dumps(answer))


def annotations(number: int, name: str, kind: str, values: list[list[str]]) -> str:
    parent = {"id": number, "name": name, "class": kind}
    namespace = "idr.openmicroscopy.org/study/info"
    return json.dumps({"annotations": [{"ns": namespace, "values": values, "link": {"parent": parent}}]})
