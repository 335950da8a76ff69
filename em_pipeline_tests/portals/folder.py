"""A web server that sends a folder's files, whole or in ranges, and counts what it sent."""

from pathlib import Path

from em_pipeline.demo.replay import Replay, Reply, Request, Trouble, not_found


class Folder(Replay):
    """Files below `root`. `ranges` is whether it sends parts of them."""

    def __init__(self, root: Path, *, ranges: bool = True) -> None:
        super().__init__()
        self.root, self.ranges = root, ranges
        self.etag: str | None = None
        self._healthy: int | None = None

    @property
    def options(self) -> dict[str, str]:
        return {"api": self.url}

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return sum(self.requests.values())

    def fails_after(self, healthy: int, trouble: Trouble) -> None:
        """From the request after the next `healthy` ones on, answer with `trouble`."""
        self.heal()
        self.trouble(trouble)
        self._healthy = healthy

    def next_trouble(self, target: str) -> Trouble | None:
        """None for as many requests as were promised to go well."""
        if self._healthy:
            self._healthy -= 1
            return None
        return super().next_trouble(target)

    def answer(self, request: Request) -> Reply:
        path = self.root.joinpath(*[part for part in request.path.split("/") if part])
        if not path.is_file():
            return not_found()
        if not self.ranges:
            return Reply(path.read_bytes())
        return Reply(path, headers={"ETag": self.etag} if self.etag else {})
