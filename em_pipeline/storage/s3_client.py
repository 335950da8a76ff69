"""One bucket of S3, or of a server that speaks S3, through botocore.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Final, TypeVar

from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from urllib3.exceptions import HTTPError

from em_pipeline.domain.errors import InputRefused, NotFound, StorageFailed
from em_pipeline.storage.faults import Fault
from em_pipeline.storage.object_client import (
    NO_ANSWER,
    Leased,
    ObjectAccess,
    Page,
    Part,
    StoredObject,
    check_page,
    no_answer,
    no_bucket,
    no_permission,
    repeated,
    where_to_look,
)
from em_pipeline.storage.s3_connection import connected

T = TypeVar("T")
Uploads = tuple[list[tuple[str, str]], dict[str, str] | None]
"""Keys and ids of one page of uploads, and the markers of the page after it, None for the last."""

PASSING: Final = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
    }
)
"""Errors that pass: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html."""

MARK: Final = "em-upload"
DELETED_AT_ONCE: Final = 1000


class S3Client:
    """Implements `ObjectClient`."""

    def __init__(self, access: ObjectAccess) -> None:
        self.access = access
        self.parts_at_once = access.policy.parts_at_once
        self.executor = ThreadPoolExecutor(access.policy.connections, "object-store")
        self.s3 = connected(access)

    def get(self, key: str) -> bytes:
        return self.ask("Read", key, lambda: _body(_tagged(self.s3.get_object(**self.named(key)))))

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        wanted = f"bytes={start}-{start + nbytes - 1}"

        def ranged() -> bytes:
            try:
                answer = _tagged(self.s3.get_object(**self.named(key), Range=wanted))
            except ClientError as error:
                if _code(error) == "InvalidRange":  # it begins at or after the end
                    return b""
                raise
            body = _body(answer)
            whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200
            return body[start : start + nbytes] if whole else body

        return self.ask("Read", key, ranged)

    def size(self, key: str) -> int | None:
        def told() -> int | None:
            try:
                return int(_tagged(self.s3.head_object(**self.named(key)))["ContentLength"])
            except ClientError as error:
                if _status(error) != 404:
                    raise
            # The answer to HEAD has no body that would tell an absent object from an absent bucket.
            self._page({"Bucket": self.access.bucket, "Prefix": key, "MaxKeys": 1})
            return None

        return self.ask("Look at", key, told)

    def put(self, key: str, payload: bytes | memoryview) -> None:
        self.ask("Write", key, lambda: _tagged(self.s3.put_object(**self.named(key), Body=Pieces(payload))))

    def look(self, key: str) -> Leased | None:
        def looked() -> Leased:
            answer = self.s3.get_object(**self.named(key))
            told = answer["ResponseMetadata"]["HTTPHeaders"]
            age = parsedate_to_datetime(told["date"]) - answer["LastModified"]
            return Leased(_body(answer), answer["ETag"], age.total_seconds())

        try:
            return self.ask("Read", key, looked)
        except NotFound:
            return None

    def put_if(self, key: str, payload: bytes, tag: str | None) -> str | None:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}

        def put() -> str | None:
            try:
                answer = self.s3.put_object(**self.named(key), Body=payload, **condition)
            except ClientError as error:
                # An object to be replaced that is not there is 404.
                if _status(error) == 412 or _code(error) == "NoSuchKey":
                    return None
                raise
            return str(answer["ETag"])

        return self.ask("Write", key, put)

    def delete_if(self, key: str, tag: str) -> None:
        def delete() -> None:
            try:
                _done(self.s3.delete_object(**self.named(key), IfMatch=tag))
            except ClientError as error:
                if _status(error) != 412 and _code(error) != "NoSuchKey":
                    raise

        self.ask("Delete", key, delete)

    def delete(self, keys: Sequence[str]) -> None:
        for at in range(0, len(keys), DELETED_AT_ONCE):
            self._delete_some(keys[at : at + DELETED_AT_ONCE])

    def _delete_some(self, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            self.ask("Delete", keys[0], lambda: _done(self.s3.delete_object(**self.named(keys[0]))))
            return
        named = {"Objects": [{"Key": key} for key in keys]}

        def delete() -> None:
            answer = self.s3.delete_objects(Bucket=self.access.bucket, Delete=named)
            for error in answer.get("Errors", []):
                found = f"{error.get('Key')}: {error.get('Code')} {error.get('Message')}"
                if error.get("Code") in PASSING:
                    raise Fault(found)
                raise no_permission(f"Delete {self.access.url(error.get('Key', ''))}", found)
            if len(deleted := answer.get("Deleted", [])) < len(keys):
                raise Fault(f"of {len(keys)} objects the answer says {len(deleted)} are deleted")

        self.ask("Delete", keys[0], delete)

    def list(self, prefix: str, at_most: int | None = None) -> Iterator[StoredObject]:
        return islice(self._listed(prefix, min(1000, at_most or 1000)), at_most)

    def _listed(self, prefix: str, page: int) -> Iterator[StoredObject]:
        asked: dict[str, Any] = {"Bucket": self.access.bucket, "Prefix": prefix, "MaxKeys": page}
        while True:
            found, following = self.ask("List", prefix, lambda: self._page(asked))
            yield from found
            if following is None:
                return
            asked["ContinuationToken"] = following

    def _page(self, asked: dict[str, Any]) -> Page:
        answer = self.s3.list_objects_v2(**asked)
        found = [
            StoredObject(entry["Key"], entry["Size"], entry["ETag"], entry["LastModified"].timestamp())
            for entry in answer.get("Contents", [])
        ]
        check_page(asked["Prefix"], found)
        if not answer["IsTruncated"]:
            return found, None
        following: str = answer["NextContinuationToken"]
        if following == asked.get("ContinuationToken"):
            raise Fault("the answer names itself as the page after it")
        return found, following

    def copy(self, source: str, target: str) -> None:
        origin = {"Bucket": self.access.bucket, "Key": source}

        def copy() -> None:
            # S3 answers 200 before it copies, and an answer without a result says nothing was copied.
            _tagged(self.s3.copy_object(**self.named(target), CopySource=origin)["CopyObjectResult"])

        self.ask("Copy", source, copy)

    def begin(self, key: str) -> "S3Upload":
        return S3Upload(self, key)

    def abort_unfinished(self, prefix: str) -> None:
        asked: dict[str, Any] = {"Bucket": self.access.bucket, "Prefix": prefix}
        while True:
            begun, following = self.ask("List the uploads below", prefix, lambda: self._uploads(asked))
            for key, upload in begun:
                self.abort(key, upload)
            if following is None:
                return
            asked.update(following)

    def _uploads(self, asked: dict[str, Any]) -> Uploads:
        answer = self.s3.list_multipart_uploads(**asked)
        begun = [(upload["Key"], upload["UploadId"]) for upload in answer.get("Uploads", [])]
        if not answer["IsTruncated"]:
            return begun, None
        following = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}
        if following.items() <= asked.items():
            raise Fault("the answer names itself as the page after it")
        return begun, following

    def abort(self, key: str, upload: str) -> None:
        def aborted() -> None:
            try:
                _done(self.s3.abort_multipart_upload(**self.named(key), UploadId=upload))
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise

        self.ask("Abort the upload of", key, aborted)

    def close(self) -> None:
        self.s3.close()

    def named(self, key: str) -> dict[str, str]:
        return {"Bucket": self.access.bucket, "Key": key}

    def ask(self, verb: str, key: str, request: Callable[[], T]) -> T:
        """What `request` returns, repeated while that may help, and its failure as one of our errors."""
        tried = f"{verb} {self.access.url(key)}"

        def attempt() -> T:
            try:
                return request()
            except ClientError as error:
                raise self._meant(tried, error) from error
            except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
                raise InputRefused(
                    tried,
                    f"no AWS credentials: {error}",
                    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or configure them as for the AWS CLI",
                ) from error
            except ParamValidationError as error:
                raise InputRefused(tried, str(error), "Correct EM_STORE_URL") from error
            except (BotoCoreError, HTTPError) as error:  # no connection, a reset, silence, a cut answer
                raise Fault(f"{type(error).__name__}: {error}") from error
            except NO_ANSWER as error:
                raise no_answer(error) from error

        return repeated(self.access.policy, tried, attempt)

    def _meant(self, tried: str, error: ClientError) -> Exception:
        status, code = _status(error), _code(error)
        found = f"HTTP {status}, {code}: {error.response['Error'].get('Message', '')}"
        if code == "NoSuchBucket":
            return no_bucket(tried, self.access)
        if code == "NoSuchKey":
            return NotFound(tried, "there is no such object")
        if status >= 500 or status in (408, 429) or code in PASSING:
            return Fault(found)
        if status in (401, 403):
            return no_permission(tried, found)
        return StorageFailed(tried, f"the store answered {found}", where_to_look(self.access))


class S3Upload:
    """A multipart upload. Parts may be sent by several threads at once, in any order."""

    def __init__(self, client: S3Client, key: str) -> None:
        self._client = client
        self._key = key
        self._named = client.named(key)
        self._tags: dict[int, str] = {}
        self._mark = secrets.token_hex(16)
        self._id: str = client.ask(
            "Begin",
            key,
            lambda: client.s3.create_multipart_upload(**self._named, Metadata={MARK: self._mark})["UploadId"],
        )

    def send(self, part: Part) -> None:
        self._tags[part.number] = self._client.ask(
            f"Write part {part.number} of",
            self._key,
            lambda: self._client.s3.upload_part(
                **self._named, UploadId=self._id, PartNumber=part.number, Body=Pieces(part.payload)
            )["ETag"],
        )

    def complete(self, last: Part) -> None:
        if last.payload:
            self.send(last)
        parts = [{"PartNumber": each, "ETag": self._tags[each]} for each in sorted(self._tags)]

        def complete() -> None:
            s3 = self._client.s3
            try:
                _tagged(
                    s3.complete_multipart_upload(
                        **self._named, UploadId=self._id, MultipartUpload={"Parts": parts}
                    )
                )
            except ClientError as error:
                # The answer to an earlier attempt was lost if the object there is ours.
                if _code(error) != "NoSuchUpload" or not self._is_there():
                    raise

        self._client.ask("Complete", self._key, complete)

    def abort(self) -> None:
        self._client.abort(self._key, self._id)

    def _is_there(self) -> bool:
        try:
            told = self._client.s3.head_object(**self._named)
        except ClientError as error:
            if _status(error) != 404:
                raise
            return False
        return bool(told["Metadata"].get(MARK) == self._mark)


class Pieces:
    """A payload as a file, so that each piece, and not the whole, has to be taken within the timeout."""

    def __init__(self, payload: bytes | memoryview) -> None:
        self._view = memoryview(payload)
        self._at = 0

    def __len__(self) -> int:
        return len(self._view)

    def read(self, count: int | None = -1) -> bytes:
        end = len(self._view) if count is None or count < 0 else min(self._at + count, len(self._view))
        piece = self._view[self._at : end]
        self._at = end
        return bytes(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _tagged(answer: dict[str, Any]) -> dict[str, Any]:
    """`answer`, if it is S3's: what S3 says of an object has the object's tag. Raises `KeyError`."""
    if not answer["ETag"]:
        raise Fault("the answer has an empty ETag")
    return answer


def _done(answer: dict[str, Any]) -> None:
    """Raise `Fault` unless S3 says that it removed something, as it does with 204 and nothing else."""
    if (status := answer["ResponseMetadata"]["HTTPStatusCode"]) != 204:
        raise Fault(f"HTTP {status} where S3 says 204")


def _body(answer: dict[str, Any]) -> bytes:
    with answer["Body"] as body:
        content: bytes = body.read()
    return content


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
