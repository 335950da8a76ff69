"""IDR, the Image Data Resource (https://idr.openmicroscopy.org), one dataset per image.

The record comes from the JSON API and the annotations, the voxels from EBI's mirror of the submitters' files,
or from IDR's OME-Zarr of the image where it has one and no such file, or where a level is asked for.
Images of screens are not offered: nothing leads from one of them back to its study.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from em_pipeline.domain.errors import EmError, InputRefused, NotFound, RecordInvalid, SourceUnavailable
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.identity import check_revision, short_hash
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.open import open_volume
from em_pipeline.sources import array_source, idr_claims, idr_files, idr_zarr
from em_pipeline.sources.array_source_address import channel_of
from em_pipeline.sources.base import DatasetRef, HeldFile, PortalRecord
from em_pipeline.sources.documents import JsonDocument
from em_pipeline.sources.idr_api import Annotation, IdrApi, Thing
from em_pipeline.sources.idr_files import Place
from em_pipeline.sources.region_size import LARGEST_GB, SizeLimit
from em_pipeline.storage.http import PortalClient

ACCESSION = re.compile(r"^(?:idr-)?([1-9]\d{0,11})$", re.IGNORECASE)
# Imaging methods of studies that are listed, as IDR's curators write them: any of these words.
ELECTRON_MICROSCOPY = "electron,FIB-SEM,SBF-SEM,array tomography"
# The same volume, once more along another axis.
RESLICED = re.compile(r"_xz(?=\.\w+$)", re.IGNORECASE)

# What differs between the levels of one image.
OF_FULL_SIZE = ("core.volume_shape.", "core.voxel_size_nm.")


class IdrSource:
    """IDR over HTTPS. `base` is its server, `mirror` the root of EBI's copy of its files, `ftp` the same root
    by FTP for when that fails (empty: none), `studies` that of the studies' repositories, `zarr` that of the
    images that IDR has as OME-Zarr.

    `methods` are words, separated by commas, of which a study's imaging method must have one to be listed.
    At most `largest_gb` of a remote array, once decoded, are taken.
    `timeout_s`, `retries` and `backoff_s` are as in `PortalClient`.
    """

    slug = "idr"
    # The Open Microscopy Environment makes it; the servers are those of EBI.
    institution = "ebi"
    licence_policy = "Each study states its own licence, most of them CC BY 4.0; some state none."
    # EBI allows 25 connections per address; one user of many should stay far below.
    max_connections = 4
    requests_per_second: float | None = None
    control_accession = "9846137"

    def __init__(
        self,
        *,
        base: str = "https://idr.openmicroscopy.org",
        mirror: str = "https://ftp.ebi.ac.uk/pub/databases/IDR",
        ftp: str = "ftp://ftp.ebi.ac.uk/pub/databases/IDR",
        studies: str = "https://raw.githubusercontent.com/IDR",
        zarr: str = "https://uk1s3.embassy.ebi.ac.uk/idr/zarr/v0.4",
        methods: str = ELECTRON_MICROSCOPY,
        largest_gb: float | str = LARGEST_GB,
        timeout_s: float | str = 12.0,
        retries: int | str = 4,
        backoff_s: float | str = 0.5,
    ) -> None:
        self._base, self._mirror, self._ftp = base.rstrip("/"), mirror.rstrip("/"), ftp.rstrip("/")
        self._studies, self._zarr = studies.rstrip("/"), zarr.rstrip("/")
        self._methods = tuple(word.strip().casefold() for word in methods.split(",") if word.strip())
        self.size_limit = SizeLimit(self.slug, float(largest_gb))
        self._timeout_s, self._retries, self._backoff_s = float(timeout_s), int(retries), float(backoff_s)

    def list_datasets(self, since: date | None = None) -> Iterable[DatasetRef]:
        """Images of the electron-microscopy studies released on or after `since`, or at an unknown date.

        Left out are single planes, and volumes that are another's reslicing.
        """
        with self._client() as client:
            api = IdrApi(client, self._base)
            projects = list(api.listed("project", "projects/"))
            if not projects:
                raise SourceUnavailable(
                    f"List the studies of {self._base}",
                    "it has no project at all, which cannot be",
                    "Nothing is concluded from it; try again later",
                )
            experiments = [one for one in projects if idr_files.Experiment.of_project(one.name)]
            for project, info in api.study_infos(experiments):
                day = idr_claims.released(info)
                if self._wanted(info) and (since is None or day is None or day >= since):
                    yield from _volumes(api, project, info)

    def fetch_record(self, spec: DatasetSpec) -> PortalRecord:
        """What the image, its dataset and its study are said to be, and where its file lies."""
        number = _number(spec)
        with self._client() as client:
            api = IdrApi(client, self._base)
            answer = api.image(number)
            image = Thing("image", number, str(answer.value["data"]["Name"]))
            dataset, project, extra = _context(api, answer, image)
            annotations = [
                note for thing in (image, dataset, project) if thing for note in api.annotations([thing])
            ]
            place = self._place(client, spec, image, dataset, project)
        of_image = [*idr_claims.image_claims(answer), *idr_claims.annotation_claims(annotations)]
        if extra is not None:
            of_image += idr_claims.image_data_claims(extra)
        claims = [
            claim
            for claim in of_image
            # IDR tells them of the full size only.
            if spec.level in (None, 0, "0") or not claim.field.startswith(OF_FULL_SIZE)
        ]
        if (info := idr_claims.study_info(annotations)) is not None:
            claims += idr_claims.rights_claims(info)
        listed = _listed(project.name if project else "", dataset.name if dataset else "", image.name, info)
        return PortalRecord(
            revision=_revision(listed, answer, place),
            claims=(*claims, *place.claims),
            documents={"image.json": answer.text},
            facts={
                "dataset": dataset.name if dataset else None,
                "project": project.name if project else None,
                **place.facts,
            },
        )

    def list_files(self, spec: DatasetSpec, record: PortalRecord) -> list[RemoteFile]:
        """The one file that the image was imported from, or the objects of its OME-Zarr.

        Raises `InputRefused` for label images of an image in a file: IDR keeps them as images of their own;
        `RecordInvalid` where the file or the objects changed since `record` was made.
        """
        with self._client() as client:
            if "zarr" in record.facts:
                images = idr_zarr.images_at(client, str(record.facts["zarr"]), spec)
                revision = str(record.facts["objects"])
                return array_source.files_at(revision, images, spec.dataset_id, self.size_limit)
            if spec.label_images:
                raise InputRefused(
                    f"Take the label images {', '.join(spec.label_images)} of {spec.dataset_id}",
                    "the image is one file, which has none",
                    "Ingest them as datasets of their own",
                )
            address = str(record.facts["file"])
            mark, elsewhere = str(record.facts["mark"]), self._elsewhere(address)
            return [idr_files.remote_file(client, address, mark, elsewhere)]

    def open_volume(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> LazyVolume:
        """The volume in that file, or the level of the OME-Zarr that the spec names."""
        if _is_zarr(files):
            return array_source.open_image(files, channel_of(spec))
        return open_volume([held.path for held in files], name=spec.dataset_id)

    def open_label_images(self, spec: DatasetSpec, files: Sequence[HeldFile]) -> Mapping[str, LazyVolume]:
        """Those of an OME-Zarr that the spec names."""
        return array_source.open_label_images(spec.label_images, files)

    def _elsewhere(self, address: str) -> tuple[str, ...]:
        """The same file by FTP."""
        return (f"{self._ftp}{address.removeprefix(self._mirror)}",) if self._ftp else ()

    def _client(self) -> PortalClient:
        return PortalClient(
            connections=self.max_connections,
            requests_per_second=self.requests_per_second,
            timeout_s=self._timeout_s,
            retries=self._retries,
            backoff_s=self._backoff_s,
        )

    def _wanted(self, info: Annotation) -> bool:
        method = (info.value("Imaging Method") or "").casefold()
        return any(word in method for word in self._methods)

    def _place(
        self,
        client: PortalClient,
        spec: DatasetSpec,
        image: Thing,
        dataset: Thing | None,
        project: Thing | None,
    ) -> Place:
        """The file on the mirror; the OME-Zarr where there is no such file or the spec names a level."""
        experiment = idr_files.Experiment.of_project(project.name) if project else None
        if experiment is None:
            raise RecordInvalid(
                f"Find the study of the image {image.id} ({image.name})",
                f"its project is {project.name!r}" if project else "the portal names no project for it",
                "Look for its file on the mirror and ingest it by its address: em ingest URL",
            )
        missing: EmError = NotFound(
            f"Find levels of the image {image.id}",
            "it is not among the images that IDR has as OME-Zarr",
            "Leave --level (`level` in the spec) out to take its file",
        )
        if spec.level is None:
            try:
                address = self._address(client, experiment, image, dataset)
                return idr_files.place_of(client, address)
            except (NotFound, RecordInvalid) as error:
                missing = error
        root = idr_zarr.find(client, self._zarr, experiment, image.id)
        if root is None:
            raise missing
        return idr_zarr.place_of(client, root, spec, self.size_limit)

    def _address(
        self, client: PortalClient, experiment: idr_files.Experiment, image: Thing, dataset: Thing | None
    ) -> str:
        """Where the image's file lies on the mirror."""
        table = f"{self._studies}/{experiment.paths_table}"
        rows = client.get_text(table)
        path = idr_files.path_of(rows, table, image.name, dataset.name if dataset else None)
        return idr_files.locate(client, self._mirror, path)


def _number(spec: DatasetSpec) -> int:
    match = ACCESSION.match(spec.accession)
    if match is None:
        raise InputRefused(
            f"Read {spec.accession!r} as an IDR image",
            "it is not a number such as 9846137",
            "Take it from the image's page, https://idr.openmicroscopy.org/webclient/?show=image-<number>",
        )
    return int(match[1])


def _context(
    api: IdrApi, answer: JsonDocument, image: Thing
) -> tuple[Thing | None, Thing | None, JsonDocument | None]:
    """The image's dataset and project, and the web client's answer where it had to be asked for more."""
    dataset = api.parent(image, "dataset")
    project = api.parent(dataset, "project") if dataset else None
    if project is not None and len(idr_claims.physical_sizes(answer.value["data"]["Pixels"])) == len("zyx"):
        return dataset, project, None
    extra = api.image_data(image.id)
    meta = extra.value.get("meta") if extra else None
    if isinstance(meta, Mapping):
        dataset, project = dataset or _named(meta, "dataset"), project or _named(meta, "project")
    return dataset, project, extra


def _named(meta: Mapping[str, Any], kind: str) -> Thing | None:
    """A dataset or project as the web client names it: without a number where there are several."""
    number, name = meta.get(f"{kind}Id"), meta.get(f"{kind}Name")
    return Thing(kind, number, str(name)) if isinstance(number, int) and name else None


def _volumes(api: IdrApi, project: Thing, info: Annotation) -> Iterator[DatasetRef]:
    day = idr_claims.released(info)
    for dataset in api.listed("dataset", f"projects/{project.id}/datasets/"):
        images = list(api.objects(f"datasets/{dataset.id}/images/"))
        names = {str(image["Name"]) for image in images}
        for image in images:
            name = str(image["Name"])
            depth = (image.get("Pixels") or {}).get("SizeZ")
            resliced = RESLICED.sub("_xy", name)
            if depth == 1 or (resliced != name and resliced in names):
                continue
            revision = _listed(project.name, dataset.name, name, info)
            yield DatasetRef(str(image["@id"]), revision, day, f"{name} ({project.name})")


def _is_zarr(files: Sequence[HeldFile]) -> bool:
    return any(held.file.path.startswith(f"{array_source.IMAGE}/") for held in files)


def _listed(project: str, dataset: str, image: str, info: Annotation | None) -> str:
    """The revision of a listed image: changes with its names and what is said of its study."""
    day = idr_claims.released(info) if info else None
    pairs = [f"{key}={value}" for key, value in info.values] if info else []
    return f"{day.isoformat() if day else 'undated'}-{short_hash(project, dataset, image, *pairs)}"


def _revision(listed: str, answer: JsonDocument, place: Place) -> str:
    """Changes with the image as listed, its description and the voxels' files."""
    return check_revision(f"{listed}-{short_hash(answer.text, place.mark)}")
