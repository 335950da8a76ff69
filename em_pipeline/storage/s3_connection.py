"""How botocore is set up to ask one bucket of S3, or of a server that speaks S3."""

from typing import Any, Final

import botocore.session  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

from em_pipeline.domain.errors import InputRefused
from em_pipeline.storage.object_client import ObjectAccess, redirected
from em_pipeline.storage.signing import DEFAULT_REGION

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def connected(access: ObjectAccess) -> Any:
    """botocore's client of S3. Raises `InputRefused` for settings, AWS's or ours, that are none."""
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
    except ValueError as error:  # a host that botocore takes for none
        raise InputRefused(
            f"Reach {access.url('')}", str(error), f"Correct {access.endpoints.setting_of('s3')}"
        ) from error


def _client(session: Any, access: ObjectAccess, config: Config) -> Any:
    endpoints = access.endpoints
    region = endpoints.s3_region or session.get_config_variable("region") or DEFAULT_REGION
    client = session.create_client("s3", region_name=region, endpoint_url=endpoints.s3 or None, config=config)
    client.meta.events.register_first("needs-retry.s3", _Redirects(access).refuse)
    return client


class _Redirects:
    """botocore follows AWS to a bucket's region, and where it is not told the region it asks for ever."""

    def __init__(self, access: ObjectAccess) -> None:
        self._access = access

    def refuse(self, response: Any, operation: Any, **_: Any) -> None:
        """Raise `StorageFailed` for an answer that sends us elsewhere and names no region."""
        if response is None or response[0].status_code not in REDIRECTS:
            return
        headers = response[0].headers
        asks_for_region = operation.name == "HeadBucket"
        if "x-amz-bucket-region" not in headers and (self._access.endpoints.s3 or asks_for_region):
            raise redirected(self._access, response[0].status_code, headers.get("Location", "elsewhere"))
