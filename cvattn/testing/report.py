"""What check_attention found, in words."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check and, in plain words, what was found."""

    outcome: Outcome
    text: str


def passed(text: str) -> Finding:
    return Finding("passed", text)


def failed(found: str, expected: str, cause: str) -> Finding:
    """``cause``: what usually does this, and what to write instead."""
    return Finding("failed", f"{found}. Expected: {expected}. Likely: {cause}.")


def not_applicable(reason: str) -> Finding:
    return Finding("not applicable", reason)


@dataclass(frozen=True)
class Report:
    """The findings of all checks by name, in the order in which they ran. ``print`` shows them."""

    module: str
    findings: dict[str, Finding]

    @property
    def passed(self) -> dict[str, str]:
        """``{check: what was found}`` of the checks that passed."""
        return self._of("passed")

    @property
    def failed(self) -> dict[str, str]:
        """``{check: what was found, expected, and the likely cause}``."""
        return self._of("failed")

    @property
    def not_applicable(self) -> dict[str, str]:
        """``{check: why it was not made}``."""
        return self._of("not applicable")

    def _of(self, outcome: Outcome) -> dict[str, str]:
        return {k: each.text for k, each in self.findings.items() if each.outcome == outcome}

    def __str__(self) -> str:
        lines = [
            f"{self.module}: {len(self.passed)} checks passed, {len(self.failed)} failed, "
            f"{len(self.not_applicable)} not applicable"
        ]
        for name, each in self.findings.items():
            outcome = each.outcome.upper() if each.outcome == "failed" else each.outcome
            lines.append(f"  {outcome} {name}: {each.text}")
        return "\n".join(lines)


class AttentionCheckError(AssertionError):
    """At least one check failed; ``report`` has all findings."""

    def __init__(self, report: Report) -> None:
        count = len(report.failed)
        lines = [f"{report.module} fails {count} check{'s' * (count > 1)}:"]
        lines += [f"  {name}: {text}" for name, text in report.failed.items()]
        lines.append(
            f"  ({len(report.passed)} passed, {len(report.not_applicable)} not applicable: see "
            ".report. A difference made on purpose: skip=(name, ...))"
        )
        super().__init__("\n".join(lines))
        self.report = report
