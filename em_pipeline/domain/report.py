"""What validation found."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class Severity(StrEnum):
    """Whether a failed check stops publication."""

    BLOCKING = "blocking"
    WARNING = "warning"


class CheckResult(BaseModel):
    """One named check: what was compared, what was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    severity: Severity = Severity.BLOCKING
    message: str
    details: dict[str, Any] = {}


class ValidationReport(BaseModel):
    """All checks of one version. `ledger_sha256` ties the report to the bytes it was made from.

    `label_ledgers` are the SHA-256 of the label images' ledgers, by folder below `labels/`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_id: str
    version: str
    ledger_sha256: str
    label_ledgers: dict[str, str] = {}
    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """True where there are checks and no blocking one failed."""
        blocking = [c for c in self.checks if c.severity is Severity.BLOCKING]
        return bool(blocking) and all(c.passed for c in blocking)

    def __str__(self) -> str:
        passed = sum(check.passed for check in self.checks)
        warned = [c.name for c in self.checks if not c.passed and c.severity is Severity.WARNING]
        parts = [f"{passed} of {len(self.checks)} checks passed"]
        parts += [f"warned: {', '.join(warned)}"] if warned else []
        parts += [f"failed: {', '.join(c.name for c in self.failures)}"] if self.failures else []
        return "; ".join(parts)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        return tuple(c for c in self.checks if not c.passed and c.severity is Severity.BLOCKING)
