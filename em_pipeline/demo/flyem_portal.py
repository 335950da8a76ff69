"""A portal on this machine that answers as FlyEM's servers do: link, bucket, DVID and neuPrint.

hemibrain has its real sizes, keys and shards: sharded JPEG without `data_encoding` and `voxel_offset`,
labels as gzipped uint64. Only the chunks of `region` are held at 8 nm; the coarsest level is held whole, with
clipped chunks at its ends.
"""

import json
import re
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from em_pipeline.demo.flyem_tree import write_tree
from em_pipeline.demo.replay import Replay, Reply, Request, not_found, text
from em_pipeline.domain.geometry import BoundingBox

BUCKET = "neuroglancer-janelia-flyem-hemibrain"
NODE = "a89eb3af216a46cdba81204d8f954786"
ROOT = "28841c8277e044a7b187dda03e18da13"
# Whole chunks around the cube of 256 voxels from 12000, 11000, 10000 on; z, y, x.
REGION = BoundingBox.at((11968, 10944, 9984), (320, 320, 320))
# DVID's last voxel in x, y, z: its volume is another product, slightly larger.
LAST_POINT = [34431, 39724, 41407]
RAW = re.compile(rf"^/api/node/{NODE}/grayscale/raw/0_1_2/(\d+)_(\d+)_(\d+)/(\d+)_(\d+)_(\d+)$")
# Raise when what is generated changes, so that an old folder is not taken for the new tree.
GENERATION = 1


class FlyemPortal(Replay):
    """The servers in one. `folder` keeps the generated files; a second portal on it starts at once.

    `region` is what is held of the finest level. `busy` is how many of the next `raw` requests that allow it
    (`throttle=true`) are answered 503, as DVID does when others are at work.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, host: str = "127.0.0.1", region: BoundingBox = REGION
    ) -> None:
        super().__init__(port=port, host=host)
        self.region = region
        self.tree = generate(folder, region)
        self.busy = 0

    @property
    def options(self) -> dict[str, str]:
        """Where the link and the servers are, as the constructor of the FlyEM source takes them."""
        return {"link": f"{self.url}/hemibrain-ng", "gs": self.url, "dvid": self.url, "neuprint": self.url}

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """The voxels of the region, as DVID holds them: not lossy."""
        voxels: NDArray[np.uint8] = np.load(self.tree / "grey.npy")
        return voxels

    def answer(self, request: Request) -> Reply:
        """The link's redirect, an object, or one of the two services, by path."""
        if request.path == "/hemibrain-ng":
            state = quote(json.dumps(neuroglancer_state()))
            return Reply(b"", status=301, headers={"Location": f"{self.url}/neuroglancer/#!{state}"})
        if request.path == "/neuroglancer/":
            return text("<!doctype html><title>neuroglancer</title>")
        if request.path.startswith(f"/{BUCKET}/"):
            return self._object(request.path.removeprefix(f"/{BUCKET}/"))
        if request.path == "/api/dbmeta/datasets":
            return text(json.dumps(neuprint_datasets()), "application/json")
        return self._dvid(request)

    def _object(self, key: str) -> Reply:
        # Both image sets hold the same voxels here.
        path = self.tree / key.replace("emdata/raw/", "emdata/clahe_yz/")
        if not path.resolve().is_relative_to(self.tree.resolve()) or not path.is_file():
            return text("<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "application/xml", 404)
        return Reply(path, "application/json" if path.name == "info" else "application/octet-stream")

    def _dvid(self, request: Request) -> Reply:
        if request.path == "/api/repos/info":
            return text(json.dumps(dvid_repositories()), "application/json")
        if request.path == f"/api/node/{NODE}/grayscale/info":
            return text(json.dumps(grayscale_info()), "application/json")
        if not (match := RAW.match(request.path)):
            return not_found()
        with self._lock:
            refused = self.busy > 0 and request.query.get("throttle") == ["true"]
            self.busy -= refused
        if refused:
            return text("Server already running maximum of 1 throttled operations", "text/plain", 503)
        size_x, size_y, size_z, x, y, z = (int(number) for number in match.groups())
        return Reply(self._raw(BoundingBox.at((z, y, x), (size_z, size_y, size_x))).tobytes())

    def _raw(self, box: BoundingBox) -> NDArray[np.uint8]:
        """Voxels z-y-x; what was never written is DVID's background."""
        voxels = np.zeros(box.shape, np.uint8)
        start = np.maximum(box.start, self.region.start)
        stop = np.minimum(box.stop, self.region.stop)
        if (start < stop).all():
            into = tuple(slice(a, b) for a, b in zip(start - box.start, stop - box.start, strict=True))
            taken = zip(start - self.region.start, stop - self.region.start, strict=True)
            voxels[into] = self.grey[tuple(slice(a, b) for a, b in taken)]
        return voxels


def generate(folder: Path, region: BoundingBox) -> Path:
    """The bucket's tree below `folder`, made once; visible whole, by a rename."""
    name = "_".join(str(n) for n in (*region.start, *region.stop))
    tree = folder / f"flyem-{GENERATION}-{name}"
    if tree.is_dir():
        return tree
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
    try:
        write_tree(partial, region)
        try:
            partial.rename(tree)
        except OSError:
            if not tree.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tree


def neuroglancer_state() -> dict[str, Any]:
    """A view of hemibrain: sources are texts or objects, and not only images come before labels."""
    source = f"precomputed://gs://{BUCKET}"
    return {
        "dimensions": {axis: [8e-09, "m"] for axis in "xyz"},
        "position": [10100.5, 11040.25, 12032],
        "crossSectionScale": 50,
        "layers": [
            {"type": "annotation", "source": f"{source}/v1.0/synapses", "name": "synapse"},
            {"type": "image", "source": {"url": f"{source}/emdata/clahe_yz/jpeg"}, "name": "emdata"},
            {"type": "segmentation", "source": f"{source}/v1.0/segmentation", "name": "segmentation"},
            {
                "type": "segmentation",
                "source": {"url": f"{source}/v1.0/rois", "subsources": {"mesh": True}},
                "name": "roi",
            },
        ],
        "layout": "4panel",
    }


def grayscale_info() -> dict[str, Any]:
    """DVID's answer for the instance of grey values."""
    points = {"MinPoint": [0, 0, 0], "MaxPoint": LAST_POINT}
    return {
        "Base": {"TypeName": "uint8blk", "Name": "grayscale", "RepoUUID": NODE, "Versioned": True},
        "Extended": {
            "Values": [{"DataType": "uint8", "Label": "uint8"}],
            "BlockSize": [64, 64, 64],
            "VoxelSize": [8, 8, 8],
            "VoxelUnits": ["nanometers"] * 3,
            **points,
            "Background": 0,
        },
        "Extents": points,
    }


def dvid_repositories() -> dict[str, Any]:
    """Two repositories; of one, an instance that nothing was ever written to."""
    empty = {"Base": {"TypeName": "labelmap"}, "Extended": {"MinPoint": None, "MaxPoint": None}}
    return {
        ROOT: {"Root": ROOT, "Alias": "hemibrain", "DataInstances": {"segmentation": empty}, "DAG": {}},
        NODE: {"Root": NODE, "Alias": "", "DataInstances": {"grayscale": grayscale_info()}, "DAG": {}},
    }


def neuprint_datasets() -> dict[str, Any]:
    """neuPrint's list of data sets: hemibrain's releases and others."""
    return {
        "hemibrain:v1.2.1": {"uuid": "15aee239", "last-mod": "2021-06-01", "ROIs": ["FB"], "hidden": False},
        "manc:v1.0": {"uuid": "1ec355123bf94e588557a4568d26d258", "ROIs": []},
    }
