"""Promise 4 without a broker: state and event together, each event once, any order; and the store below."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

INBOX = "dinemesh.kit.inbox"
STORE = "dinemesh.kit.store"
_KIT = "tests/kit/test_events.py::"
_STORE = "tests/kit/test_store.py::"

GUARDS = (
    Guard(
        "outbox-in-the-transaction",
        (4,),
        "The row of the outbox is written in the transaction that changes the state.",
        (
            Edit(
                "dinemesh.kit.outbox",
                "tx.append(\n            self._insert,",
                "import sqlalchemy\n\n"
                "        second = sqlalchemy.create_engine(tx._connection.engine.url).connect()\n"
                "        second.execute(\n            self._insert,",
            ),
            Edit(
                "dinemesh.kit.outbox",
                "        if publisher is not None and lease is not None:\n",
                "        second.commit()\n        second.close()\n"
                "        if publisher is not None and lease is not None:\n",
            ),
        ),
        (
            Witness(
                _KIT + "test_an_event_and_its_change_are_one_transaction[postgresql]",
                "assert await store.read(count(outbox_rows)) == 0",
            ),
        ),
    ),
    Guard(
        "move-and-event",
        (4,),
        "A move of a reservation and its event are one transaction, not one after the other.",
        (
            Edit(
                "reservation_svc.usecases.context",
                "self.outbox.add(tx, ReservationEvent(move.event, after, before.terms, failure))",
                "event = ReservationEvent(move.event, after, before.terms, failure)\n"
                "            add = lambda: self.store.write(lambda later: self.outbox.add(later, event))\n"
                '            tx.after_commit(lambda: self.background.start(add(), "event"))',
            ),
        ),
        (
            Witness(
                "tests/reservation/test_ends.py::test_a_move_and_its_event_are_one_transaction[sqlite]",
                "assert",
            ),
        ),
        quick=True,
    ),
    Guard(
        "step-and-event",
        (4,),
        "A step of a deposit and its event are one transaction, not one after the other.",
        (
            Edit(
                "deposit_svc.usecases",
                "self._outbox.add(tx, step.event)",
                "event = step.event\n"
                "                    write = lambda later: self._outbox.add(later, event)\n"
                "                    add = lambda: self._store.write(write)\n"
                '                    tx.after_commit(lambda: self._background.start(add(), "event"))',
            ),
        ),
        (
            Witness(
                "tests/deposit/test_usecases.py::test_a_step_and_its_event_are_one_transaction[sqlite]",
                "assert",
            ),
        ),
        quick=True,
    ),
    Guard(
        "inbox-check",
        (1, 4),
        "Every event that took effect is known by its id; a duplicate has no second effect.",
        (
            Edit(
                INBOX,
                "unseen = self._record(tx, statements, events)",
                "self._record(tx, statements, events)\n        unseen = {event.event_id for event in events}",
            ),
        ),
        (
            Witness(
                _KIT + "test_a_duplicate_has_no_second_effect[sqlite]",
                "assert await inbox.take(event) is False",
            ),
            Witness(
                "tests/deposit/test_handlers.py::"
                "test_a_duplicate_and_a_later_event_with_the_same_instruction_change_nothing[sqlite]",
                "assert not await inbox.take(inbox.decode(modified))",
            ),
        ),
        quick=True,
    ),
    Guard(
        "inbox-in-the-transaction",
        (4,),
        "An event is recorded in the transaction of its effect: one that failed is not known.",
        (
            Edit(
                INBOX,
                "return await self._store.write(functools.partial(self._apply, events=events))",
                "note = lambda tx: self._record(tx, self._statements(tx), events)\n"
                "        self._noted = await self._store.write(note)\n"
                "        return await self._store.write(functools.partial(self._apply, events=events))",
            ),
            Edit(
                INBOX,
                "unseen = self._record(tx, statements, events)",
                "unseen = set(self._noted)",
            ),
        ),
        (
            Witness(
                _KIT + "test_an_effect_and_its_record_are_one_transaction[sqlite]",
                "assert await store.read(count(tables.inbox)) == 0",
            ),
        ),
        quick=True,
    ),
    Guard(
        "newest-only",
        (4,),
        "An event about an older version of its aggregate than the newest heard has no effect.",
        (Edit(INBOX, "if not self._subscription.newest_only:", "if self._subscription:"),),
        (
            Witness(
                _KIT + "test_an_older_version_has_no_effect_where_only_the_newest_counts[sqlite]",
                'assert await store.read(texts) == ["two", "three"]',
            ),
        ),
        quick=True,
    ),
    Guard(
        "highest-version",
        (4,),
        "A booking follows the newest event of its reservation, whichever came last.",
        (
            Edit(
                "restaurant_svc.domain",
                "if snapshot.version <= booking.heard_version:",
                "if snapshot is booking:",
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_domain.py::test_every_order_of_a_reservations_events_ends_alike",
                "assert ends == {end(story)}",
            ),
            Witness(
                "tests/restaurant/test_domain.py::test_a_duplicate_changes_nothing",
                "assert domain.on_reservation(booking, heard(1, PENDING), NOW +",
            ),
        ),
        quick=True,
    ),
    Guard(
        "booking-guarded-update",
        (4,),
        "A booking moves only from where it was seen.",
        (
            Edit(
                "restaurant_svc.persistence",
                '    bookings.c.state == bindparam("state_before"),\n'
                '    bookings.c.version == bindparam("version_before"),\n'
                '    bookings.c.heard_version == bindparam("heard_before"),\n',
                "    bindparam(\"state_before\") != '',\n"
                '    bindparam("version_before") >= 0,\n'
                '    bindparam("heard_before") >= 0,\n',
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_persistence.py::"
                "test_a_booking_moves_only_from_where_it_was_seen[sqlite-state]",
                "assert not await store.write(lambda tx: persistence.move_booking(tx, sta",
            ),
            Witness(
                "tests/restaurant/test_persistence.py::"
                "test_a_booking_moves_only_from_where_it_was_seen[sqlite-version]",
                "assert not await store.write(lambda tx: persistence.move_booking(tx, sta",
            ),
        ),
        quick=True,
    ),
    Guard(
        "staff-revision",
        (4,),
        "What staff say of other terms than the present ones is refused.",
        (Edit("restaurant_svc.domain", "if revision != booking.terms.revision:", "if not revision:"),),
        (
            Witness(
                "tests/restaurant/test_usecases.py::test_a_stale_revision_is_refused_without_effect[sqlite]",
                "with pytest.raises(Refusal) as refused:",
            ),
        ),
        quick=True,
    ),
    Guard(
        "restaurant-news-revision",
        (4,),
        "What the restaurant says of other terms than the present ones has no effect on a reservation.",
        (
            Edit(
                "reservation_svc.domain.reservations",
                "if snapshot.revision != self.terms.revision:",
                "if not snapshot.revision:",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_modify.py::test_an_acceptance_of_old_terms_has_no_effect[sqlite]",
                "assert (await pod.see(placed)).state is State.PENDING_ACCEPTANCE",
            ),
        ),
        quick=True,
    ),
    Guard(
        "outcome-after-commit",
        (1, 4),
        "An outcome is told only after the commit.",
        (
            Edit(
                STORE,
                "        try:\n            writer.commit()\n",
                "        work.tell(items)\n        try:\n            writer.commit()\n",
            ),
        ),
        (
            Witness(
                _STORE + "test_outcomes_are_released_after_the_commit_and_in_doubt_when_it_fails[sqlite]",
                "with pytest.raises(CommitInDoubt):",
            ),
        ),
        quick=True,
    ),
    Guard(
        "commit-in-doubt",
        (1, 2, 4),
        "After a failed COMMIT nothing is run again: it may have happened.",
        (
            Edit(
                STORE,
                'log.error("COMMIT failed; %d items are in doubt", len(items), exc_info=error)\n',
                "raise _Spoiled from error\n",
            ),
            Edit(
                STORE,
                "if not (isinstance(item.error, DBAPIError) and",
                "if isinstance(item.error, DBAPIError) and not (",
            ),
        ),
        (
            Witness(
                _STORE + "test_outcomes_are_released_after_the_commit_and_in_doubt_when_it_fails[sqlite]",
                "Refusal: TRY_AGAIN_LATER",
            ),
        ),
        quick=True,
    ),
    Guard(
        "spoiled-group",
        (4,),
        "What one item of a group spoils is rolled back, and the others run on their own.",
        (
            Edit(
                STORE,
                "            if transaction.wrote:\n                raise\n            item.error = refusal",
                "            item.error = refusal",
            ),
        ),
        (
            Witness(
                _STORE
                + "test_a_refusal_after_a_write_leaves_nothing_of_it_and_all_of_its_neighbours[sqlite]",
                'assert await store.read(names) == {"a", "b"}',
            ),
        ),
        quick=True,
    ),
    Guard(
        "synced-on-sqlite",
        (1, 4),
        "A commit on SQLite is on the disk before it is told.",
        (Edit("dinemesh.kit.engines", '"synchronous=FULL"', '"synchronous=OFF"'),),
        (
            Witness(
                _STORE + "test_durability_is_asked_for[sqlite]",
                "assert await store.write(lambda tx: tx.execute(text(query)).scalar_one()",
            ),
        ),
        quick=True,
    ),
    Guard(
        "synced-on-postgresql",
        (1, 4),
        "A commit on PostgreSQL is on the disk before it is told, whatever the server does by default.",
        (
            Edit(
                "dinemesh.kit.engines",
                "set_config('synchronous_commit', 'on', false)",
                "set_config('synchronous_commit', 'off', false)",
            ),
        ),
        (
            Witness(
                "tests/durability/test_syncs_of_postgresql.py::test_each_group_is_synced_once",
                "assert GROUPS + 1 <= synced <= GROUPS + 1 + OTHERS",
            ),
        ),
    ),
    Guard(
        "unsent-stays",
        (4,),
        "What was never sent is never deleted, however old it is.",
        (Edit("dinemesh.kit.retention", ", only=columns.sent_time.is_not(None)", ""),),
        (
            Witness(
                "tests/kit/test_retention.py::"
                "test_of_the_outbox_goes_what_was_sent_and_is_old[sqlite-400-False-True]",
                "assert await ids(store, outbox_rows) ==",
            ),
        ),
        quick=True,
    ),
    Guard(
        "inbox-that-alone-knows",
        (4,),
        "A row of the inbox is deleted only where a duplicate changes nothing without it.",
        (Edit("dinemesh.kit.retention", "        if one.outlives_inbox\n", ""),),
        (
            Witness(
                "tests/kit/test_retention.py::"
                "test_a_duplicate_that_comes_after_its_row_is_gone_changes_nothing[sqlite-by nothing else]",
                "assert await store.read(count(tables.inbox)) == (0 if goes else 3)",
            ),
        ),
        quick=True,
    ),
)
