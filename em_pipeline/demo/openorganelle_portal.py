"""A portal on this machine that answers as OpenOrganelle's bucket and its web pages do.

`jrc_mus-nacc-2` has the real dataset's names, sizes and metadata: int16 in chunks of 64³, nine levels with
half-voxel translations, EM and nuclei in `recon-2` while `recon-1` has no EM. Levels s3 to s8 hold generated
voxels; the finer ones, which would be gigabytes, hold those of `REGION` of s0. `jrc_mus-kidney` is one of the
older datasets, in an N5 container. Beside them lies what a listing must not take for a dataset.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_pipeline.demo.openorganelle_page import page
from em_pipeline.demo.openorganelle_tree import write_kidney, write_nacc
from em_pipeline.demo.replay import Replay, Reply, Request, not_found, text
from em_pipeline.demo.s3_bucket import LARGEST_PAGE, Bucket

BUCKET = "janelia-cosem-datasets"
# Raise when what is generated changes, so that an old folder is not taken for the new tree.
GENERATION = 1


class OpenOrganellePortal(Replay):
    """The bucket, path-style, and the site's pages `/datasets/<name>` as a browser renders them.

    `folder` keeps the generated files; a second portal on it starts at once. `listing_page` is how many keys
    one answer to a listing holds.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, host: str = "127.0.0.1", listing_page: int = LARGEST_PAGE
    ) -> None:
        super().__init__(port=port, host=host)
        self.tree = generate(folder)
        self.bucket = Bucket(BUCKET, self.tree, page=listing_page)

    @property
    def options(self) -> dict[str, str]:
        """Who answers for the bucket, and the site, as the OpenOrganelle source takes them."""
        return {"s3": self.url, "site": self.url}

    def answer(self, request: Request) -> Reply:
        """An object, a listing, or a dataset's page."""
        if request.path == f"/{BUCKET}" or request.path.startswith(f"/{BUCKET}/"):
            return self.bucket.answer(request)
        if request.path.startswith("/datasets/"):
            shown = page(request.path.removeprefix("/datasets/").rstrip("/"))
            return text(shown) if shown else not_found()
        return not_found()


def generate(folder: Path) -> Path:
    """The bucket's tree below `folder`, made once; visible whole, by a rename."""
    tree = folder / f"openorganelle-{GENERATION}"
    if tree.is_dir():
        return tree
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder))
    try:
        write_nacc(partial / "jrc_mus-nacc-2")
        write_kidney(partial / "jrc_mus-kidney")
        _write_clutter(partial)
        try:
            partial.rename(tree)
        except OSError:
            if not tree.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tree


def _write_clutter(root: Path) -> None:
    """Keys at the bucket's root, and folders at it that hold no image container of their own name."""
    clutter: Mapping[str, Any] = {
        "index.html": "<html>bucket</html>",
        "jrc_mus-nacc-2/thumbnail.jpg": "thumbnail",
        "jrc_mus-kidney/thumbnail.jpg": "thumbnail",
        "jrc_mus-kidney/neuroglancer/mesh/nuc/info": "{}",
        "heinrich-2021a/README.md": "models of a paper",
        "jrc_announced/thumbnail.jpg": "thumbnail",
    }
    for name, content in clutter.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
