"""Public buckets of the real stores: that they list and answer as we read them. A few kilobytes."""

import pytest

from em_pipeline.storage.http import PortalClient
from em_pipeline.storage.objects import ObjectStoreClient

pytestmark = pytest.mark.live


@pytest.mark.parametrize(
    ("address", "below"),
    [
        ("s3://janelia-cosem-datasets/", "jrc_mus-nacc-2/"),
        ("gs://neuroglancer-janelia-flyem-hemibrain/", "emdata/"),
    ],
)
def test_buckets_are_listed_anonymously(address: str, below: str) -> None:
    with PortalClient(connections=1) as portal:
        assert below in ObjectStoreClient(portal).list(address, "/").prefixes


def test_what_is_not_there_is_told_from_what_is() -> None:
    address = "gs://neuroglancer-janelia-flyem-hemibrain/emdata/clahe_yz/jpeg/info"
    with PortalClient(connections=1) as portal:
        store = ObjectStoreClient(portal)
        told = store.head(address)
        assert told is not None
        assert told.size
        assert (store.get(address) or b"").lstrip().startswith(b"{")
        assert store.get(f"{address}.none") is None
