"""EPFL's CVLab on this machine: its data page and its file server, with the space in the folder's name."""

import hashlib
import json
import os
from html import escape
from pathlib import Path

import numpy as np

from em_pipeline.demo.replay import Replay, Reply, Request, not_found, text
from em_pipeline.demo.specimen import mitochondria, specimen
from em_pipeline.demo.tiff_writers import write_itk

Shape3 = tuple[int, int, int]
PAGE = "/labs/cvlab/data/data-em/"
FOLDER = "/groups/c/cv/cvlab-unit/www/data/ ElectronMicroscopy_Hippocampus/"
WHOLE: Shape3 = (64, 300, 400)
PART: Shape3 = (33, 192, 256)
VOXEL_NM = (5.0, 5.0, 5.0)
PARTS = ("training", "testing")


class EpflPortal(Replay):
    """The web site and the file server in one. `shape` and `part` (z-y-x) size volumedata and its two parts.

    The page repeats links and leaves the space in them as it is, except in one. `folder` keeps the files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        shape: Shape3 = WHOLE,
        part: Shape3 = PART,
    ) -> None:
        super().__init__(port=port, host=host)
        self.shape = shape
        self.tree = _generate(folder, shape, part)
        self.asks_for_password = False
        self.needs_javascript = False

    @property
    def options(self) -> dict[str, str]:
        """Keyword arguments of the EPFL source, with the checksum of the file that is served here."""
        digest = hashlib.md5((self.tree / "volumedata.tif").read_bytes(), usedforsecurity=False)
        return {"documents": self.url, "pages": self.url, "volumedata_md5": digest.hexdigest()}

    def heal(self) -> None:
        """Forget every trouble and replacement; ask for no password and need no JavaScript."""
        super().heal()
        self.asks_for_password = self.needs_javascript = False

    def answer(self, request: Request) -> Reply:
        """The page, or a file."""
        if request.path == PAGE:
            article = self.article()
            return text(_by_script(article) if self.needs_javascript else _page(article))
        if request.path.startswith(FOLDER):
            if self.asks_for_password:
                return text("<html>Authorization Required</html>", status=401)
            file = self.tree / request.path.removeprefix(FOLDER)
            if file.parent == self.tree and file.is_file():
                return Reply(file, "image/tiff")
        return not_found()

    def article(self) -> str:
        """The page's article. It gives the shape in the order z, x, y."""
        z, y, x = self.shape
        whole, *parts = (f"{self.url}{FOLDER}{name}.tif" for name in ("volumedata", *PARTS))
        truths = [f"{self.url}{FOLDER}{name}_groundtruth.tif" for name in PARTS]
        result = f"{self.url}{FOLDER.replace(' ', '%20')}results_test.tif"
        links = "".join(
            f'<li><a href="{escape(link)}">{link.rpartition("/")[2]}</a></li>'
            for link in (whole, *parts, *parts, *truths, result)
        )
        return (
            '<article id="post-2138" class="page"><h3 id="data">Data</h3>\n'
            "<p>A 5x5x5µm section of the CA1 hippocampus region of the brain, corresponding to a "
            f"{z}x{x}x{y} volume. The resolution of each voxel is approximately 5x5x5nm. "
            f"All are multipage TIF files.</p>\n<ul>{links}</ul></article>"
        )


def _page(article: str) -> str:
    title = "Electron Microscopy Dataset ‐ CVLAB ‐ EPFL"
    return f"<!doctype html><html><head><title>{title}</title></head><body>{article}</body></html>"


def _by_script(article: str) -> str:
    """The same page as a browser alone can read it."""
    script = f"<script>document.body.innerHTML = {json.dumps(article)}</script>"
    return _page(script)


def _generate(folder: Path, whole: Shape3, part: Shape3) -> Path:
    """Write the files below `folder`, unless they are there already."""
    tree = folder / f"epfl-{'x'.join(map(str, (*whole, *part)))}"
    if tree.exists():
        return tree
    temporary = tree.with_name(f".{tree.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    write_itk(temporary / "volumedata.tif", specimen(whole, seed=5, voxel_size_nm=VOXEL_NM), whole)
    for seed, name in enumerate(PARTS, start=6):
        write_itk(temporary / f"{name}.tif", specimen(part, seed=seed, voxel_size_nm=VOXEL_NM), part)
        inside = mitochondria(part, seed=seed, voxel_size_nm=VOXEL_NM)
        truth = np.where(inside, np.uint8(255), np.uint8(0))
        write_itk(temporary / f"{name}_groundtruth.tif", truth, part)
    temporary.replace(tree)
    return tree
