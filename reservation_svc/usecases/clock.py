"""Whether the database's clock may end what it has passed. A clock that jumps forward passes everything.

Bookings that became due while this process watched the clock go in step with its own are ended, however many
they are. Of those that became due unwatched (a jump, a restart) no more than a share of what is alive:
otherwise none is ended until an operator says so, or the clock is put right.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dinemesh.kit.store import Transaction
from reservation_svc.domain import Rules
from reservation_svc.persistence import clock as records

# A database's clock that is set right by so much has not jumped.
SLACK_SECONDS = 60.0
# How far what is on record may be behind: a successor judges what became due since.
RECORD_SECONDS = 10.0


@dataclass(frozen=True)
class Verdict:
    """Bookings due by `until` may be ended (None: none). `held`: how many are not, of how many `alive`."""

    now: datetime
    until: datetime | None
    held: int = 0
    alive: int = 0
    is_news: bool = False
    """Whether the record has to be changed."""


class Clock:
    """What one process has seen of the database's clock."""

    def __init__(self) -> None:
        self._seen: tuple[datetime, float] | None = None
        self._until: datetime | None = None
        self._is_held = False

    def judge(self, tx: Transaction, rules: Rules, own_time: float) -> Verdict:
        """`own_time`: seconds of a clock that does not jump. Changes nothing."""
        now, record = tx.now, records.trust(tx)
        known = [one for one in (record.until, self._until) if one is not None]
        until = (
            min(max(known), now) if known else None
        )  # of a clock that went back, nothing to come is trusted
        if until is None or not self._watched_since(until, now, own_time):
            ends = records.endings(tx, until, now)
            if any(count > rules.lapse_floor for count in ends.values()):
                alive, is_news = records.alive(tx), record.held_time is None
                # What is held stays held: bookings made since, by the wrong clock, would lower its share.
                if not is_news or any(
                    count > max(rules.lapse_floor, rules.lapse_share * alive[kind])
                    for kind, count in ends.items()
                ):
                    return Verdict(now, until, ends.total(), alive.total(), is_news)
        behind = record.until is None or abs(now - record.until) >= timedelta(seconds=RECORD_SECONDS)
        return Verdict(now, now, is_news=behind or record.held_time is not None)

    def _watched_since(self, until: datetime, now: datetime, own_time: float) -> bool:
        """Whether all that became due since `until` did so under the eyes of this process."""
        if self._seen is None:
            return False
        then, own_then = self._seen
        passed = (now - then).total_seconds()
        return until >= min(then, now) and passed <= own_time - own_then + SLACK_SECONDS

    def keep(self, verdict: Verdict, own_time: float) -> None:
        """Remembers what `judge` saw."""
        self._seen = verdict.now, own_time
        self._until = verdict.until
        self._is_held = verdict.held > 0

    def not_later_than(self, now: datetime, own_time: float) -> datetime:
        """`now` of the database; of a clock that is not trusted, or has jumped since it was looked at, the
        last time at which it was right. By that an answer is late or not."""
        if self._is_held and self._until is not None:
            return min(now, self._until)
        if self._seen is not None:
            then, own_then = self._seen
            passed = timedelta(seconds=own_time - own_then)
            if now - then > passed + timedelta(seconds=SLACK_SECONDS):
                return then + passed
        return now
