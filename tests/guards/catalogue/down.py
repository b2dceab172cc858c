"""A database that is down in more ways than unreachable: nobody waits for it, and nothing is lost by it."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

ENGINES = "dinemesh.kit.engines"
STORE = "dinemesh.kit.store"
_DOWN = "tests/kit/test_database_down.py::"
_STORE = "tests/kit/test_store.py::"

GUARDS = (
    Guard(
        "read-only-is-down",
        (1, 5),
        "A database that takes no changes is down: nothing is refused for good, and no event fails by it.",
        (Edit(ENGINES, '        "25006",  # read-only', "        # read-only"),),
        (Witness(_DOWN + "test_a_database_that_turns_read_only_refuses_at_once_and_comes_back", "ReadOnly"),),
        quick=True,
    ),
    Guard(
        "refused-at-once",
        (7,),
        "Nobody waits for a database that is known to be down.",
        (Edit(STORE, "if (trouble := self.trouble) is not None:", "if (trouble := None) is not None:"),),
        (
            Witness(
                _DOWN + "test_a_database_that_turns_read_only_refuses_at_once_and_comes_back", "TimeoutError"
            ),
        ),
        quick=True,
    ),
    Guard(
        "what-rests-lets-go",
        (6,),
        "What a pod that hangs has locked is free again before others give up to wait for it.",
        (Edit(ENGINES, "IDLE_IN_TRANSACTION_SECONDS = 1", "IDLE_IN_TRANSACTION_SECONDS = 60"),),
        (
            Witness(
                _STORE + "test_what_a_pod_that_hangs_has_locked_is_free_again",
                'await asyncio.wait_for(other.write(sell("a", 100)), 2)',
            ),
        ),
    ),
    Guard(
        "who-hangs-is-ended",
        (6,),
        "The same of a pod that was stopped while it sent several statements.",
        (Edit(STORE, "            engines.end_hung(connection)\n", "            pass\n"),),
        (
            Witness(
                _STORE + "test_what_a_pod_has_in_hand_that_was_stopped_while_it_sent_is_free_again",
                'await asyncio.wait_for(store.write(sell("a", 100), on=("a",)), 2)',
            ),
        ),
    ),
    Guard(
        "locks-are-not-waited-for",
        (7,),
        "A lock that somebody else does not give back is waited for so long and no longer.",
        (Edit(ENGINES, "SET lock_timeout = {round(LOCK_TIMEOUT_SECONDS * 1000)}", "SET lock_timeout = 0"),),
        (
            Witness(
                _DOWN + "test_a_lock_that_is_not_given_back_is_noticed_and_refused_until_it_is",
                "assert slowest < 4",
            ),
        ),
    ),
    Guard(
        "rehearsal",
        (8,),
        "A service is not called well while the change that failed would fail again.",
        (
            Edit(
                STORE,
                "if time.monotonic() - down.since < REHEARSAL_SECONDS:",
                "if False:",
            ),
        ),
        (
            Witness(
                _DOWN + "test_a_lock_that_is_not_given_back_is_noticed_and_refused_until_it_is",
                "assert store.trouble is not None",
            ),
        ),
    ),
    Guard(
        "writer-that-stands-still",
        (7, 8),
        "A writer that stands still is noticed, and nobody waits behind it.",
        (Edit(STORE, "if looks == STALLED_LOOKS:", "if looks < 0:"),),
        (
            Witness(
                _DOWN + "test_a_commit_that_does_not_end_is_in_doubt_and_the_store_goes_on",
                "assert soon < 0.75 * seconds",
            ),
        ),
        quick=True,
    ),
    Guard(
        "commit-that-does-not-end",
        (1, 4, 7),
        "A commit that does not end is in doubt, and the writer goes on with another session.",
        (Edit(STORE, "elif looks == CUT_LOOKS:", "elif looks < 0:"),),
        (
            Witness(
                _DOWN + "test_a_commit_that_does_not_end_is_in_doubt_and_the_store_goes_on", "TimeoutError"
            ),
        ),
    ),
    Guard(
        "abandoned-is-not-committed",
        (1, 4),
        "What was told not to have happened is not committed later.",
        (Edit(STORE, "if not work.commit(items):", "if work.commit(items) is None:"),),
        (
            Witness(
                _DOWN + "test_what_was_told_not_to_have_happened_is_not_committed_later",
                'assert await store.read(names) == {"before", "after"}',
            ),
        ),
        quick=True,
    ),
    Guard(
        "commit-without-its-standby",
        (1,),
        "A commit that the server answers without its standby is in doubt.",
        (Edit(ENGINES, "if self._warnings:", "if self._warnings is None:"),),
        (
            Witness(
                _DOWN + "test_a_commit_whose_wait_for_a_standby_is_ended_is_in_doubt",
                "with pytest.raises(CommitInDoubt):",
            ),
        ),
        quick=True,
    ),
    Guard(
        "no-room-nothing-changed",
        (1,),
        "A commit for which SQLite had no room has changed nothing, and says so.",
        (
            Edit(
                ENGINES,
                "_SQLITE_UNDONE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL})",
                "_SQLITE_UNDONE = frozenset({-1})",
            ),
        ),
        (
            Witness(
                _DOWN + "test_a_commit_for_which_sqlite_had_no_room_has_changed_nothing",
                "the outcome of a commit is unknown",
            ),
        ),
        quick=True,
    ),
    Guard(
        "readiness-asks-the-writer",
        (8,),
        "A service whose database takes no changes is not ready, within three seconds and some.",
        (
            Edit(
                "dinemesh.kit.service",
                "    await store.read(ask)\n    await store.ask_writer()\n",
                "    await store.read(ask)\n",
            ),
        ),
        (
            Witness(
                "tests/kit/test_service.py::test_a_service_is_not_ready_while_its_database_takes_no_changes",
                "TimeoutError",
            ),
        ),
        quick=True,
    ),
    Guard(
        "recorded-without-the-caller",
        (7,),
        "Nobody waits until the outcome of a charge can be recorded; it is recorded all the same.",
        (
            Edit(
                "reservation_svc.usecases.context",
                "await asyncio.wait((trying,), timeout=_RECORD_WAIT_SECONDS)",
                "await asyncio.wait((trying,))",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_faults.py"
                "::test_nobody_waits_until_an_outcome_can_be_recorded_and_it_is[sqlite]",
                "assert time.monotonic() - begun < 5",
            ),
        ),
        quick=True,
    ),
    Guard(
        "migrations-take-their-time",
        (8,),
        "A migration takes the time that it takes, whatever timeouts the database has for changes.",
        (Edit("dinemesh.kit.migrate", 'connection.execute(text(f"SET LOCAL {timeout} = 0"))', "pass"),),
        (
            Witness(
                "tests/kit/test_migrate.py::test_a_migration_takes_the_time_that_it_takes", "QueryCanceled"
            ),
        ),
        quick=True,
    ),
)
