"""The client."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from em_client.blocks import BlockRequest, read_block
from em_client.errors import AnswerDamaged, AnswerInvalid
from em_client.models import Block, Dataset, Health, Level, Metadata
from em_client.transport import Transport

if TYPE_CHECKING:
    import httpx

PAGE = 200


class EMClient:
    """Reads datasets, metadata and blocks from the sidecar at `base_url`.

    `timeout_s` bounds each wait for the network; `retries` is how often an outage or damaged answer is tried
    again. May be shared between threads, pickled, and used in forked workers. Close it, or use it in `with`.
    """

    def __init__(
        self, base_url: str = "http://127.0.0.1:8000", *, timeout_s: float = 30.0, retries: int = 3
    ) -> None:
        self._transport = Transport(base_url, timeout_s, retries)
        self._metadata: dict[str, Metadata] = {}

    def close(self) -> None:
        """Close the connections. The client may be used again; it then opens new ones."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._transport.base_url, self._transport.timeout_s, self._transport.retries)

    def __repr__(self) -> str:
        return f"EMClient({self._transport.base_url!r})"

    def health(self) -> Health:
        """That the sidecar serves. Raises `ServerUnavailable` where it does not or its catalogue is down."""
        return self._transport.get_json("Ask for the sidecar's health", "/health", {}, Health.parse)

    def list_datasets(self, *, source: str | None = None, organism: str | None = None) -> list[Dataset]:
        """Every published dataset, by id; of one source or organism (compared without case) where given."""
        filters = {"source": source, "organism": organism}
        params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        datasets: list[Dataset] = []
        after = ""
        while True:
            page = {**params, "limit": PAGE, **({"after": after} if after else {})}
            found, after_next = self._transport.get_json(
                "List the datasets", "/api/v1/datasets", page, _parse_page
            )
            datasets += found
            if after_next is None:
                return datasets
            if after_next <= after:
                raise AnswerInvalid(
                    "List the datasets", f"the page after {after!r} leads back to {after_next!r}"
                )
            after = after_next

    def metadata(self, dataset_id: str) -> Metadata:
        """What is catalogued about the published version, asked anew. Raises `NotFound`."""
        found = self._transport.get_json(
            f"Read the metadata of {dataset_id}",
            "/api/v1/metadata",
            {"dataset_id": dataset_id},
            Metadata.parse,
        )
        if found.dataset_id != dataset_id:
            raise AnswerInvalid(
                f"Read the metadata of {dataset_id}", f"the answer is about {found.dataset_id}"
            )
        self._metadata[dataset_id] = found
        return found

    def get_block(
        self,
        dataset_id: str,
        z: int,
        y: int,
        x: int,
        *,
        level: int = 0,
        size: Sequence[int] = (128, 128, 128),
        version: str | None = None,
    ) -> Block:
        """Voxels `[z, z+size[0])`, ... of `level`, clipped at the volume's far edges.

        `z, y, x` are voxels of that level, not chunk indices: chunk `(k, j, i)` begins at 128 times these.
        `version` insists on one published version. Raises `NotFound` where the dataset, version or level does
        not exist or the block begins outside the volume, `RequestRefused` where it is too large or
        nonsense, `ChunkCorrupt` where stored voxels are damaged, `ServerUnavailable` on an outage, and
        `AnswerInvalid` where the answer contradicts the metadata, its headers or its checksum.
        """
        request = BlockRequest.checked(dataset_id, level, (z, y, x), size, version)

        def read(response: "httpx.Response") -> Block:
            answered = response.headers.get("x-em-version", "")
            if not answered:
                raise AnswerInvalid(
                    str(request),
                    f"{self._transport.base_url} answered without naming the volume's version",
                    "Check that the address is that of an em-pipeline sidecar",
                )
            if version is not None and answered != version:
                raise AnswerInvalid(str(request), f"version {version} was asked for, {answered!r} was sent")
            expected = self._level(request, answered)
            return read_block(request, response, answered, expected)

        return self._transport.get(str(request), "/api/v1/block", request.params, read)

    def _level(self, request: BlockRequest, version: str) -> Level:
        """What the metadata of `version` says of the level asked for: what its blocks are checked against."""
        known = self._metadata.get(request.dataset_id)
        if known is None or known.version != version:
            known = self.metadata(request.dataset_id)
        if known.version != version:
            # A version was published between the two requests; the next attempt sees one state.
            raise AnswerDamaged(
                str(request), f"the block is of version {version!r}, the metadata of {known.version!r}"
            )
        for level in known.levels:
            if level.index == request.level:
                return level
        raise AnswerInvalid(
            str(request), f"voxels were sent for level {request.level}, which it does not have"
        )


def _rebuild(base_url: str, timeout_s: float, retries: int) -> EMClient:
    return EMClient(base_url, timeout_s=timeout_s, retries=retries)


def _parse_page(answer: Mapping[str, Any]) -> tuple[list[Dataset], str | None]:
    after = answer["next"]
    return [Dataset.parse(entry) for entry in answer["datasets"]], None if after is None else str(after)
