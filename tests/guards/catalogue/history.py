"""Promise 10: history converges, whatever order it hears, and can be made again."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

_HISTORY = "tests/history/test_usecases.py::"

GUARDS = (
    Guard(
        "every-version",
        (10,),
        "History keeps every event, also an older version that comes late.",
        (Edit("history_svc.handlers", "newest_only=False", "newest_only=True"),),
        (
            Witness(
                _HISTORY + "test_an_older_version_that_comes_late_is_kept[sqlite]",
                'assert len(await history.kinds("alice")) == len(story)',
            ),
        ),
        quick=True,
    ),
    Guard(
        "order-of-reading",
        (10,),
        "A timeline is sorted by when things happened, not by when they were heard.",
        (
            Edit(
                "history_svc.persistence",
                ".order_by(*order).limit(limit)",
                ".order_by(timeline_entries.c.position).limit(limit)",
            ),
        ),
        (
            Witness(
                _HISTORY + "test_every_order_and_every_duplicate_gives_the_same_timeline[sqlite]",
                'assert await other.kinds("alice") == list(stories.KINDS_OF_THE_STORY)',
            ),
        ),
        quick=True,
    ),
    Guard(
        "rebuild-forgets",
        (10,),
        "A rebuild forgets what was taken, so that the log is read for what is missing.",
        (Edit("history_svc.persistence", "kit_inbox.forget(tx, inbox, subscriber)", "pass"),),
        (
            Witness(
                _HISTORY + "test_what_a_subscriber_forgot_is_taken_again_and_changes_nothing[sqlite]",
                "assert await history.hear(*reversed(story)) == [True] * len(story)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "archive-of-events",
        (10,),
        "History keeps every event as it came, so that a rebuild needs no log.",
        (Edit("history_svc.usecases", "persistence.archive(tx, events)", "pass"),),
        (
            Witness(
                _HISTORY + "test_every_event_is_archived_as_it_came[sqlite]",
                "assert {one.envelope for one in kept} == set(told)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "unknown-events",
        (10,),
        "An event of a type that is newer than this history is kept.",
        (Edit("history_svc.handlers", "        other=on_event,\n", ""),),
        (
            Witness(
                _HISTORY + "test_an_unknown_event_is_kept[sqlite]",
                'page = await history.timeline.entries("alice", reservation_id, None, 10)',
            ),
        ),
        quick=True,
    ),
)
