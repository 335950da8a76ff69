"""Requests to S3 with the credentials that AWS's own tools would use (Signature Version 4, by botocore)."""

from functools import cache
from typing import TYPE_CHECKING

from em_pipeline.domain.errors import InputRefused
from em_pipeline.storage.object_urls import AWS_HOST, ObjectEndpoints

if TYPE_CHECKING:
    import botocore.session  # type: ignore[import-untyped]
    import httpx

# Where AWS's global endpoint is.
DEFAULT_REGION = "us-east-1"


def signature(method: str, url: "httpx.URL", endpoints: ObjectEndpoints) -> dict[str, str]:
    """Headers that sign a request without a body; none where S3 is read anonymously or `url` is not S3's.

    Raises `InputRefused` where no credentials are found.
    """
    if endpoints.s3_anonymous or not endpoints.is_s3(str(url)):
        return {}
    from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
    from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]

    session = _session()
    credentials = session.get_credentials()
    if credentials is None:
        raise InputRefused(
            f"Sign the request for {url}",
            "there are no AWS credentials in the environment or ~/.aws",
            "Set EM_S3_ANONYMOUS=true for public buckets, or configure credentials as for the AWS CLI",
        )
    match = AWS_HOST.fullmatch(url.host)
    named = match["region"] if match else None
    region = named or endpoints.s3_region or session.get_config_variable("region") or DEFAULT_REGION
    request = AWSRequest(method=method, url=str(url))
    S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return dict(request.headers.items())


@cache
def _session() -> "botocore.session.Session":
    import botocore.session

    return botocore.session.Session()
