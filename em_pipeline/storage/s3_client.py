"""One bucket of S3, or of a server that speaks S3, through botocore.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Final, TypeVar

import botocore.session  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
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
    Leased,
    ObjectAccess,
    Part,
    StoredObject,
    no_bucket,
    no_permission,
    repeated,
)
from em_pipeline.storage.signing import DEFAULT_REGION

T = TypeVar("T")

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
        self.s3 = _connected(access)

    def get(self, key: str) -> bytes:
        return self.ask("Read", key, lambda: _body(self.s3.get_object(**self.named(key))))

    def get_range(self, key: str, start: int, nbytes: int) -> bytes:
        wanted = f"bytes={start}-{start + nbytes - 1}"

        def ranged() -> bytes:
            try:
                answer = self.s3.get_object(**self.named(key), Range=wanted)
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
                return int(self.s3.head_object(**self.named(key))["ContentLength"])
            except ClientError as error:
                if _status(error) != 404:
                    raise
            # The answer to HEAD has no body that would tell an absent object from an absent bucket.
            self.s3.list_objects_v2(Bucket=self.access.bucket, Prefix=key, MaxKeys=1)
            return None

        return self.ask("Look at", key, told)

    def put(self, key: str, payload: bytes | memoryview) -> None:
        self.ask("Write", key, lambda: self.s3.put_object(**self.named(key), Body=Pieces(payload)))

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
                self.s3.delete_object(**self.named(key), IfMatch=tag)
            except ClientError as error:
                if _status(error) != 412 and _code(error) != "NoSuchKey":
                    raise

        self.ask("Delete", key, delete)

    def delete(self, keys: Sequence[str]) -> None:
        for at in range(0, len(keys), DELETED_AT_ONCE):
            self._delete_some(keys[at : at + DELETED_AT_ONCE])

    def _delete_some(self, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            self.ask("Delete", keys[0], lambda: self.s3.delete_object(**self.named(keys[0])))
            return
        named = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def delete() -> None:
            answer = self.s3.delete_objects(Bucket=self.access.bucket, Delete=named)
            for error in answer.get("Errors", []):
                found = f"{error.get('Key')}: {error.get('Code')} {error.get('Message')}"
                if error.get("Code") in PASSING:
                    raise Fault(found)
                raise no_permission(f"Delete {self.access.url(error.get('Key', ''))}", found)

        self.ask("Delete", keys[0], delete)

    def list(self, prefix: str, at_most: int | None = None) -> Iterator[StoredObject]:
        return islice(self._listed(prefix, min(1000, at_most or 1000)), at_most)

    def _listed(self, prefix: str, page: int) -> Iterator[StoredObject]:
        asked: dict[str, Any] = {"Bucket": self.access.bucket, "Prefix": prefix, "MaxKeys": page}
        while True:
            answer = self.ask("List", prefix, lambda: self.s3.list_objects_v2(**asked))
            for entry in answer.get("Contents", []):
                modified: datetime = entry["LastModified"]
                yield StoredObject(entry["Key"], entry["Size"], entry["ETag"], modified.timestamp())
            if not answer["IsTruncated"]:
                return
            asked["ContinuationToken"] = answer["NextContinuationToken"]

    def copy(self, source: str, target: str) -> None:
        origin = {"Bucket": self.access.bucket, "Key": source}
        self.ask("Copy", source, lambda: self.s3.copy_object(**self.named(target), CopySource=origin))

    def begin(self, key: str) -> "S3Upload":
        return S3Upload(self, key)

    def abort_unfinished(self, prefix: str) -> None:
        asked: dict[str, Any] = {"Bucket": self.access.bucket, "Prefix": prefix}
        while True:
            answer = self.ask(
                "List the uploads below", prefix, lambda: self.s3.list_multipart_uploads(**asked)
            )
            for upload in answer.get("Uploads", []):
                self.abort(upload["Key"], upload["UploadId"])
            if not answer.get("IsTruncated"):
                return
            asked["KeyMarker"] = answer["NextKeyMarker"]
            asked["UploadIdMarker"] = answer["NextUploadIdMarker"]

    def abort(self, key: str, upload: str) -> None:
        def aborted() -> None:
            try:
                self.s3.abort_multipart_upload(**self.named(key), UploadId=upload)
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
        return StorageFailed(tried, f"the store answered {found}", "Check EM_STORE_URL and EM_S3_ENDPOINT")


class S3Upload:
    """A multipart upload. Parts may be sent by several threads at once, in any order."""

    def __init__(self, client: S3Client, key: str) -> None:
        self._client = client
        self._key = key
        self._named = client.named(key)
        self._tags: dict[int, str] = {}
        self._mark = secrets.token_hex(16)
        begun = client.ask(
            "Begin",
            key,
            lambda: client.s3.create_multipart_upload(**self._named, Metadata={MARK: self._mark}),
        )
        self._id: str = begun["UploadId"]

    def send(self, part: Part) -> None:
        answer = self._client.ask(
            f"Write part {part.number} of",
            self._key,
            lambda: self._client.s3.upload_part(
                **self._named, UploadId=self._id, PartNumber=part.number, Body=Pieces(part.payload)
            ),
        )
        self._tags[part.number] = answer["ETag"]

    def complete(self, last: Part) -> None:
        if last.payload:
            self.send(last)
        parts = [{"PartNumber": each, "ETag": self._tags[each]} for each in sorted(self._tags)]

        def complete() -> None:
            s3 = self._client.s3
            try:
                s3.complete_multipart_upload(
                    **self._named, UploadId=self._id, MultipartUpload={"Parts": parts}
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


def _connected(access: ObjectAccess) -> Any:
    session = botocore.session.Session()
    endpoints, policy = access.endpoints, access.policy
    config = Config(
        connect_timeout=policy.timeout_s,
        read_timeout=policy.timeout_s,
        max_pool_connections=policy.connections + 8,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"} if endpoints.s3 or "." in access.bucket else {},
        # Many servers that speak S3 know no other checksum than the signature's SHA-256.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return _client(session, access, config)
    except BotoCoreError as error:
        raise InputRefused(
            f"Reach {access.url('')}", f"AWS's settings: {error}", "Correct AWS_PROFILE and ~/.aws/config"
        ) from error


def _client(session: Any, access: ObjectAccess, config: Config) -> Any:
    endpoints = access.endpoints
    region = endpoints.s3_region or session.get_config_variable("region") or DEFAULT_REGION
    return session.create_client("s3", region_name=region, endpoint_url=endpoints.s3 or None, config=config)


def _body(answer: dict[str, Any]) -> bytes:
    with answer["Body"] as body:
        content: bytes = body.read()
    return content


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
