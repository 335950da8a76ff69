"""IDR on this machine: OMERO's JSON API, the web client, the studies' repositories, EBI's mirror."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_pipeline.demo.apache import apache_index
from em_pipeline.demo.idr_entries import (
    IMAGES,
    INFOS,
    PROJECTS,
    SCREENS,
    DemoImage,
    Shape3,
    annotations_of,
    image_object,
    paths_tables,
    study_annotations,
)
from em_pipeline.demo.idr_zarr import write_ome_zarr
from em_pipeline.demo.replay import Replay, Reply, Request, not_found, text
from em_pipeline.demo.specimen import specimen
from em_pipeline.demo.tiff_writers import write_imagej

MIRROR = "/pub/databases/IDR/"
STUDIES = "/IDR/"
OBJECTS = "/idr/zarr/v0.4/"
SHAPE: Shape3 = (46, 194, 280)
VOXEL_UM = 0.02
DEFAULT_LIMIT, MAX_LIMIT = 200, 1000
IMAGE_BY_ID = {image.number: image for image in IMAGES}
OBJECT = re.compile(r"^images/(\d+)/$")
LIST = re.compile(r"^(?:(projects|screens)/|(images|datasets|projects)/(\d+)/(datasets|projects|images)/)$")


class IdrPortal(Replay):
    """The server, the repositories and the mirror in one. `shape` (z-y-x) sizes every volume.

    `max_limit` is the longest page of a list. `migrating` is whether `imgData` answers with an exception, as
    it does while IDR moves its images; `parents_known` whether the API leads from an image to its dataset;
    `answers_for_one` whether annotations of only the last of several parents are given.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, host: str = "127.0.0.1", shape: Shape3 = SHAPE
    ) -> None:
        super().__init__(port=port, host=host)
        self.shape = shape
        self.tree = _generate(folder, shape)
        self._usual()

    def _usual(self) -> None:
        self.max_limit = MAX_LIMIT
        self.migrating = True
        self.parents_known = True
        self.answers_for_one = False

    @property
    def options(self) -> dict[str, str]:
        """Keyword arguments of the IDR source."""
        return {
            "base": self.url,
            "mirror": f"{self.url}{MIRROR.rstrip('/')}",
            "ftp": "",
            "studies": f"{self.url}{STUDIES.rstrip('/')}",
            "zarr": f"{self.url}{OBJECTS.rstrip('/')}",
        }

    def heal(self) -> None:
        """Forget every trouble and replacement."""
        super().heal()
        self._usual()

    def answer(self, request: Request) -> Reply:
        """Whatever server the path belongs to."""
        routes: Mapping[str, Callable[[str, Request], Reply]] = {
            "/api/v0/m/": self._api,
            "/webclient/api/annotations/": self._annotations,
            "/webclient/imgData/": self._image_data,
            "/webclient/": lambda *_: text("<!doctype html><html><title>OMERO.web</title></html>"),
            "/webgateway/render_image": lambda *_: Reply(b"", status=403),
            "/webgateway/archived_files/download/": lambda *_: _login(),
            STUDIES: self._study,
            MIRROR: self._mirror,
            OBJECTS: self._object,
        }
        for prefix, route in routes.items():
            if request.path.startswith(prefix):
                return route(request.path.removeprefix(prefix), request)
        return not_found()

    def _api(self, path: str, request: Request) -> Reply:
        if (match := OBJECT.match(path)) and int(match[1]) in IMAGE_BY_ID:
            return _json({"data": image_object(IMAGE_BY_ID[int(match[1])], self.shape)})
        if match := LIST.match(path):
            found = self._listed(match[1] or match[2], match[3], match[4])
            if found is not None:
                return self._page(found, request.query)
        return not_found()

    def _listed(self, kind: str, parent: str | None, child: str | None) -> list[dict[str, Any]] | None:
        """Objects of a list; None for a route that this server does not have."""
        if child is None or parent is None:
            containers = PROJECTS if kind == "projects" else SCREENS
            return [{"@id": number, "Name": name} for number, name in containers.items()]
        number = int(parent)
        if child == "images":
            images = [image for image in IMAGES if image.dataset[0] == number]
            return [image_object(image, self.shape) for image in images]
        if not self.parents_known and (kind, child) in (("images", "datasets"), ("datasets", "projects")):
            return None
        related = {
            ("projects", "datasets"): {image.dataset for image in IMAGES if image.project == number},
            ("images", "datasets"): {image.dataset for image in IMAGES if image.number == number},
            ("datasets", "projects"): {
                (image.project, PROJECTS[image.project]) for image in IMAGES if image.dataset[0] == number
            },
        }
        found = related.get((kind, child))
        return None if found is None else [{"@id": n, "Name": name} for n, name in sorted(found)]

    def _page(self, objects: Sequence[dict[str, Any]], query: Mapping[str, list[str]]) -> Reply:
        """A page of a list. A limit that is too long is shortened; unknown parameters are ignored."""
        asked, offset = (
            int(query.get(name, [d])[0]) for name, d in (("limit", DEFAULT_LIMIT), ("offset", 0))
        )
        limit = min(asked, self.max_limit)
        meta = {
            "offset": offset,
            "limit": limit,
            "maxLimit": self.max_limit,
            "totalCount": len(objects),
        }
        return _json({"data": list(objects[offset : offset + limit]), "meta": meta})

    def _annotations(self, _path: str, request: Request) -> Reply:
        """Of all the parents asked for; one that is not there has none. Other parameters are ignored."""
        found = []
        for number in map(int, request.query.get("image", [])):
            if number in IMAGE_BY_ID:
                found += annotations_of(IMAGE_BY_ID[number])
        for kind, names in (("project", PROJECTS), ("screen", SCREENS)):
            numbers = [int(number) for number in request.query.get(kind, [])]
            for number in numbers[-1:] if self.answers_for_one else numbers:
                if names.get(number) in INFOS:
                    found += study_annotations(kind, number, names[number])
        return _json({"annotations": found, "experimenters": []})

    def _image_data(self, path: str, _request: Request) -> Reply:
        image = IMAGE_BY_ID.get(int(path.rstrip("/")))
        if image is None:
            return not_found()
        z, y, x = self.shape
        meta = {
            "imageId": image.number,
            "imageName": image.name,
            "projectId": image.project,
            "projectName": PROJECTS[image.project],
            "datasetId": image.dataset[0],
            "datasetName": image.dataset[1],
            "pixelsType": "uint8",
        }
        answer: dict[str, Any] = {"id": image.number, "meta": meta, "perms": {"canEdit": False}}
        if self.migrating:
            return _json(
                {**answer, "Exception": "Error instantiating pixel buffer: /OMERO/ManagedRepository"}
            )
        size = {"width": x, "height": y, "z": z, "c": 1, "t": 1}
        return _json({**answer, "size": size, "pixel_size": dict.fromkeys("xyz", VOXEL_UM), "tiles": False})

    def _study(self, path: str, _request: Request) -> Reply:
        table = paths_tables().get(path)
        return not_found() if table is None else text(table, "text/plain; charset=utf-8")

    def _mirror(self, path: str, request: Request) -> Reply:
        target = (self.tree / "files").joinpath(*[part for part in path.split("/") if part])
        if not target.resolve().is_relative_to(self.tree.resolve()) or not target.exists():
            return not_found()
        if target.is_dir():
            return text(apache_index(request.path, target))
        return Reply(target, "image/tiff")

    def _object(self, path: str, _request: Request) -> Reply:
        """An object, by its key: an object store has no folders."""
        target = self.tree / "zarr" / path
        if not target.resolve().is_relative_to(self.tree.resolve()) or not target.is_file():
            return not_found()
        return Reply(target)


def _json(value: Any) -> Reply:
    return text(json.dumps(value), "application/json")


def _login() -> Reply:
    """The way to an original file leads to the login page, which answers 200 with the web client."""
    return Reply(b"", status=302, headers={"Location": "/webclient/login/"})


def _generate(folder: Path, shape: Shape3) -> Path:
    """Write the mirrored files below `folder`, unless they are there already."""
    tree = folder / f"idr-{'x'.join(map(str, shape))}"
    if tree.exists():
        return tree
    temporary = tree.with_name(f".{tree.name}.{os.getpid()}")
    for image in IMAGES:
        _write(temporary, image, shape)
    temporary.replace(tree)
    return tree


def _write(tree: Path, image: DemoImage, shape: Shape3) -> None:
    size = 1000 * VOXEL_UM
    volume = specimen(shape, seed=image.seed, voxel_size_nm=(size, size, size))
    if image.resliced:
        volume = volume.transpose(1, 0, 2).copy()
    if image.converted:
        write_ome_zarr(tree / "zarr" / image.converted, volume, VOXEL_UM)
        return
    path = tree / "files" / image.mirrored
    path.parent.mkdir(parents=True, exist_ok=True)
    write_imagej(path, volume, VOXEL_UM)
