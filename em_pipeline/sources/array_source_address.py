"""An image and its label images by their addresses: a folder here, s3://, gs://, or http(s)://."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from em_pipeline.domain.errors import InputRefused, NotFound
from em_pipeline.domain.spec import DatasetSpec
from em_pipeline.formats.arrays import joined
from em_pipeline.formats.mirror import images_in
from em_pipeline.formats.multiscale import list_labels, read_multiscale
from em_pipeline.sources.array_source import HeldImage, image_at, image_of, label_image_at
from em_pipeline.sources.array_source_container import (
    Container,
    FolderContainer,
    StoreContainer,
    WebContainer,
)
from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.object_urls import ObjectEndpoints, is_object

REMOTE = ("s3://", "gs://", "https://", "http://")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
BUCKET_AS_HOST = re.compile(r"(.+)\.s3(?:[.-][a-z0-9-]+)?\.amazonaws\.com")
# Documents of which an image or array has at least one.
DOCUMENTS = ("zarr.json", ".zattrs", ".zarray", "attributes.json")


Containers = Callable[[str], Container]


def container_at(address: str, client: PortalClient) -> Container:
    """The container at an address. Raises `InputRefused` for addresses of other kinds."""
    plain = address.rstrip("/")
    if not is_remote(address):
        if "://" in address:
            raise InputRefused(
                f"Look for arrays at {address}",
                "addresses of that kind are not read",
                f"Read are paths, {', '.join(REMOTE)}",
            )
        return FolderContainer(Path(address))
    if is_object(plain):
        return StoreContainer(plain, client)
    if (in_store := _in_store(plain, client.endpoints)) is not None:
        return StoreContainer(in_store, client)
    return WebContainer(plain, client)


def is_remote(address: str) -> bool:
    return address.lower().startswith(REMOTE)


def _in_store(url: str, endpoints: ObjectEndpoints) -> str | None:
    """The address in an object store that a web URL is another name of: stores can be listed."""
    host, path = urlsplit(url).netloc.lower(), unquote(urlsplit(url).path)
    if endpoints.s3:
        base = f"{endpoints.s3.rstrip('/')}/"
        return f"s3://{unquote(url.removeprefix(base))}" if url.startswith(base) else None
    if match := BUCKET_AS_HOST.fullmatch(host):
        return f"s3://{match[1]}{path}"
    return f"gs:/{path}" if host == "storage.googleapis.com" else None


def image_by_address(address: str, spec: DatasetSpec, containers: Containers) -> HeldImage:
    """The image at an address, or the array there as the level that the image above says it is.

    A text as `spec.image_set` is the image's path below the address, a number the channel to take of it.
    Raises like `image_at`, and `NotFound` that tells what was looked for and what is there instead.
    """
    container, at = containers(address), channel_of(spec)
    path = spec.image_set.strip("/") if isinstance(spec.image_set, str) else ""
    try:
        levels = read_multiscale(container.fetch, path, at=at)
    except NotFound as error:
        inside = _only_image(container) if not path else None
        if inside is None:
            raise _nothing(address, path, container) from error
        return image_at(container, inside, spec, at)
    above, _, name = address.rstrip("/").rpartition("/")
    if path or levels[0].path or not above or above.endswith(("/", ":")):
        return image_of(container, levels, spec)
    # An array alone has no voxel size; the image above it may say one.
    return image_at(containers(above), unquote(name) if is_remote(address) else name, spec, at)


def channel_of(spec: DatasetSpec) -> dict[str, int]:
    """Which entry of the channel axis a number as `spec.image_set` means; empty where it is no number."""
    return {"c": spec.image_set} if isinstance(spec.image_set, int) else {}


def label_image_by_name(entry: str, image: HeldImage, containers: Containers) -> HeldImage:
    """The label image that an entry of `DatasetSpec.label_images` means: `name` or `name=address`.

    A name alone is one of the label images that the image itself lists (OME-Zarr's `labels` group).
    """
    name, given, address = entry.partition("=")
    if given:
        return label_image_at(containers(address), "", name, image)
    parent = image.path
    listed = list_labels(image.container.fetch, parent)
    if name not in listed:
        raise NotFound(
            f"Find the label image {name!r} of {image.url}",
            f"the image lists {', '.join(listed) or 'none'}",
            "Name one of them, or give the address of another as name=address",
        )
    return label_image_at(image.container, joined(parent, "labels", name), name, image)


def _only_image(container: Container) -> str | None:
    """Path of the only image inside a container that is a folder here, where looking around costs nothing.

    Raises `InputRefused` where there are several.
    """
    if not isinstance(container, FolderContainer):
        return None
    inside = images_in(container.folder)
    if len(inside) > 1:
        raise InputRefused(
            f"Find an image at {container.folder}",
            f"there are {len(inside)}: {', '.join(inside[:8])}" + ", …" * (len(inside) > 8),
            "Choose one by its path with `image_set` (--image-set)",
        )
    return inside[0] if inside else None


def _nothing(address: str, path: str, container: Container) -> NotFound:
    names = [name for name in container.names(f"{path}/" if path else "") if name not in DOCUMENTS]
    there = f"; below it are {', '.join(names[:8])}" if names else ""
    return NotFound(
        f"Find an image at {address}" + f", path {path!r}" * bool(path),
        f"there is no array and no multiscale image (looked for {', '.join(DOCUMENTS)}){there}",
        "Give the address of the image itself, the folder that holds its levels; or its path below with "
        "`image_set`",
    )
