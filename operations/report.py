"""What an audit found: violations and what to do about each, pending states, and how much was looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from operations.text import indented


@dataclass(frozen=True, order=True)
class Violation:
    """One thing that is wrong: which check saw it, about what (an id), in which words, and what to do next.

    Two readings speak of the same violation when check and subject are the same.
    """

    check: str
    subject: str
    what: str
    remedy: str = field(compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the violation in another reading, as (check, subject)."""
        return self.check, self.subject


@dataclass(frozen=True, order=True)
class Pending:
    """A state that is allowed, on its way to another, and listed so that nobody has to guess. `remedy`: what
    a person has to do, if it does not go on without."""

    state: str
    subject: str
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Finding:
    """What one check says: its name, how much it looked at, and what it found."""

    check: str
    looked_at: str
    violations: tuple[Violation, ...] = ()
    pending: tuple[Pending, ...] = ()
    noted: tuple[Pending, ...] = ()
    """Allowed, and where it stays: nothing waits, but a person may want to know."""
    more: int = 0
    """Violations beyond those that are kept one by one."""


@dataclass(frozen=True)
class Report:
    """The outcome of all checks; `skipped` names those whose sources were not given."""

    findings: tuple[Finding, ...]
    skipped: tuple[str, ...] = ()

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Returns those of all findings that are kept one by one, without what `Finding.more` only counts."""
        return tuple(violation for finding in self.findings for violation in finding.violations)

    @property
    def pending(self) -> tuple[Pending, ...]:
        """Returns those of all findings, in the order of the checks."""
        return tuple(pending for finding in self.findings for pending in finding.pending)

    @property
    def noted(self) -> tuple[Pending, ...]:
        """Returns those of all findings, in the order of the checks; they need nothing from anybody."""
        return tuple(noted for finding in self.findings for noted in finding.noted)

    @property
    def clean(self) -> bool:
        """Returns True without violations, whatever is pending or noted."""
        return not self.violations

    def seen_before(self, earlier: Report) -> Report:
        """This report with only those violations that the earlier reading saw too.

        On a live mesh a booking is between two databases all the time; what is wrong twice is wrong. What is
        not kept one by one cannot be compared, and counts where all that is kept was wrong before.
        """
        before = {finding.check: finding.more for finding in earlier.findings}
        known = {violation.key for violation in earlier.violations}

        def again(finding: Finding) -> Finding:
            kept = tuple(violation for violation in finding.violations if violation.key in known)
            more = min(finding.more, before.get(finding.check, 0)) if kept == finding.violations else 0
            return replace(finding, violations=kept, more=more)

        return Report(tuple(map(again, self.findings)), self.skipped)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(report: Report) -> Iterable[str]:
    width = max((len(finding.check) for finding in report.findings), default=0)
    for finding in report.findings:
        wrong = len(finding.violations) + finding.more
        verdict = f"{wrong} WRONG" if wrong else "ok"
        yield f"{finding.check:<{width}}  {verdict:<9}  {finding.looked_at}"
    for name in report.skipped:
        yield f"{name:<{width}}  not looked at: its source was not given"
    for title, listed in (
        ("Pending (allowed, listed):", report.pending),
        ("To know (nothing waits):", report.noted),
    ):
        if listed:
            yield ""
            yield title
        for pending in sorted(listed):
            yield from indented(f"{pending.state}  {pending.subject}: {pending.what}", "  ")
            yield from indented(pending.remedy, "    do: ")
    for violation in sorted(report.violations):
        yield ""
        yield from indented(f"WRONG  {violation.check}  {violation.subject}", "")
        yield from indented(violation.what, "  what: ")
        yield from indented(violation.remedy, "  do:   ")
    yield ""
    if report.clean:
        yield "audit: nothing wrong"
    else:
        more = sum(finding.more for finding in report.findings)
        not_shown = f", {more} of them not shown" if more else ""
        yield f"audit: {len(report.violations) + more} wrong{not_shown}"
