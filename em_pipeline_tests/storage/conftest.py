"""What several modules of downloads ask for."""

import pytest

from em_pipeline.storage import pace


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is asked again because a busy machine leaves it behind others: requests are counted."""
    monkeypatch.setattr(pace, "SOONEST_S", 60.0)
    monkeypatch.setattr(pace, "WINDOW_S", 60.0)
