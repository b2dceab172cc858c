"""Promises 4 and 5 over the broker: nothing is lost on the way, and poison blocks nothing."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

BUS = "dinemesh.kit.bus"
CANARIES = "dinemesh.kit.canaries"
CONSUMER = "dinemesh.kit.consumer"
INBOX = "dinemesh.kit.inbox"
RELAY = "dinemesh.kit.relay"
USERS = "local_mesh.broker_users"
_KIT = "tests/kit/test_events.py::"
_BUS = "tests/kit/test_bus.py::"
_TOPOLOGY = "tests/kit/test_topology.py::"
_USERS = "tests/kit/test_broker_users.py::"
_MAY = 'pytest.fail(f"{user} may {what}")'

GUARDS = (
    Guard(
        "publisher-confirms",
        (4,),
        "An event is sent when the broker has confirmed it.",
        (Edit(BUS, "publisher_confirms=True, on_return_raises=True", "publisher_confirms=False"),),
        (
            Witness(
                _BUS + "test_what_a_broker_took_along_when_it_died_is_published_again",
                'await until(hears(store, "before", "taken along?"))',
            ),
        ),
    ),
    Guard(
        "mark-sent-after-publish",
        (4,),
        "A row is marked sent after the confirm, not before.",
        (
            Edit(
                RELAY,
                "parcels = list(self._parcels(rows))\n",
                "parcels = list(self._parcels(rows))\n"
                "        self._sent += [row.event_id for row in rows]\n"
                "        await self._mark()\n",
            ),
        ),
        (
            Witness(
                _BUS + "test_what_a_broker_took_along_when_it_died_is_published_again",
                'await until(hears(store, "before", "taken along?"))',
            ),
        ),
    ),
    Guard(
        "mandatory",
        (4,),
        "An event that no queue takes is not sent.",
        (Edit(BUS, "mandatory=True", "mandatory=False"),),
        (Witness(_BUS + "test_what_no_queue_takes_is_not_sent", 'assert "confirmed" not in outcomes'),),
    ),
    Guard(
        "lease",
        (4,),
        "What one relay has claimed the others leave alone for a while.",
        (
            Edit(
                RELAY,
                "free = or_(columns.claim_until.is_(None), self._is_over(tx))",
                "free = columns.sent_time.is_(None)",
            ),
        ),
        (Witness(_BUS + "test_two_relays_publish_each_event_once", "assert other.published == []"),),
    ),
    Guard(
        "lease-ends",
        (4,),
        "What a relay claimed and did not send is free again after the lease.",
        (
            Edit(
                RELAY,
                "free = or_(columns.claim_until.is_(None), self._is_over(tx))",
                "free = columns.claim_until.is_(None)",
            ),
        ),
        (
            Witness(
                _BUS + "test_what_a_dead_relay_had_claimed_is_sent_after_its_lease",
                "await until(lambda: bus.published)",
            ),
        ),
    ),
    Guard(
        "claims-of-the-dead",
        (4,),
        "On SQLite what a killed process had claimed is sent by the next one at once.",
        (Edit(RELAY, 'if tx.dialect == "sqlite":', 'if tx.dialect == "":'),),
        (
            Witness(
                _KIT + "test_what_a_killed_process_had_claimed_is_sent_by_the_next_one_at_once",
                "await until(unsent(sqlite_store), 10)",
            ),
        ),
    ),
    Guard(
        "sweep",
        (4, 6),
        "The relay looks by itself for what was written while the broker was away.",
        (
            Edit(
                RELAY,
                "async with asyncio.timeout_at(self._next_sweep):",
                "async with asyncio.timeout(None):",
            ),
        ),
        (
            Witness(
                _KIT + "test_events_written_without_a_broker_are_sent_when_it_is_there",
                'await until(hears(sqlite_store, "early"))',
            ),
        ),
    ),
    Guard(
        "log-first",
        (4, 10),
        "A subscriber whose queue is new reads the log before it counts as caught up.",
        (
            Edit(
                CONSUMER,
                "if is_new:\n                await",
                "if not queue:\n                await",
            ),
        ),
        (
            Witness(
                _KIT + "test_a_guest_reads_all_that_was_said_before_it_came",
                'assert await sqlite_store.read(texts) == ["before", "between"]',
            ),
        ),
    ),
    Guard(
        "lost-queue",
        (4,),
        "A subscriber whose queue was lost reads the log again.",
        (
            Edit(
                CONSUMER,
                "is_there = await self._bus.has_queue(queue)",
                "is_there = bool(queue)",
            ),
            # A start looks besides whether a short gap was hidden by it.
            Edit(CONSUMER, "await self._read_log(hidden_since)", "pass"),
        ),
        (
            Witness(
                _KIT + "test_a_deleted_queue_heals_and_misses_nothing",
                'await until(hears(sqlite_store, "a", "lost?"))',
            ),
        ),
    ),
    Guard(
        "junk-is-told-apart",
        (5,),
        "Bytes that are no event are known as such, before anything is done with them.",
        (
            Edit(
                INBOX,
                "if not (envelope.event_id and envelope.type and envelope.aggregate_id):",
                "if envelope.event_id and not envelope.type:",
            ),
        ),
        (Witness(_KIT + "test_junk_is_undecodable", "DID NOT RAISE"),),
        quick=True,
    ),
    Guard(
        "unreadable-at-once",
        (5,),
        "What cannot be read becomes a dead letter at once.",
        (Edit(CONSUMER, "await message.reject(requeue=False)", "await message.nack(requeue=True)"),),
        (
            Witness(
                _KIT
                + "test_a_message_that_cannot_be_read_is_a_dead_letter_blocks_nothing_and_can_be_redriven",
                "assert (letter.queue, letter.event_id, letter.type, letter.reason) == (",
            ),
        ),
    ),
    Guard(
        "delivery-limit",
        (5,),
        "What fails again and again becomes a dead letter.",
        (Edit(BUS, '            "x-delivery-limit": DELIVERY_LIMIT,\n', ""),),
        (
            Witness(
                _KIT + "test_a_message_that_always_fails_becomes_a_dead_letter"
                "_and_takes_effect_after_the_cause_is_gone",
                "await until(lambda: dead_letters.count_dead(bus, QUEUE))",
            ),
        ),
    ),
    Guard(
        "dead-letter-queue",
        (5,),
        "What a subscriber rejects goes into a queue that is listed, not into nothing.",
        (
            Edit(BUS, '            "x-dead-letter-exchange": dead_exchange(queue),\n', ""),
            Edit(BUS, '            "x-dead-letter-routing-key": dead,\n', ""),
            Edit(BUS, '            "x-dead-letter-strategy": "at-least-once",\n', ""),
        ),
        (
            Witness(
                _KIT
                + "test_a_message_that_cannot_be_read_is_a_dead_letter_blocks_nothing_and_can_be_redriven",
                "await until(dead)",
            ),
        ),
    ),
    Guard(
        "poison-in-the-log",
        (5,),
        "What fails in the log becomes a dead letter and does not keep a subscriber from catching up.",
        (
            Edit(
                CONSUMER,
                "            self._count(_FAILED)\n            with call.working_on(call_of(part.event)):\n",
                "            raise\n            with call.working_on(call_of(part.event)):\n",
            ),
        ),
        (
            Witness(
                _KIT + "test_a_guest_reads_all_that_was_said_before_it_came",
                "await asyncio.wait_for(subscriber.caught_up.wait(), 30)",
            ),
        ),
    ),
    Guard(
        "own-database-down",
        (4, 5),
        "With its own database away a consumer keeps its messages instead of sending them in a circle.",
        (
            Edit(
                CONSUMER,
                "        except (StoreUnavailable, CommitInDoubt):\n"
                "            await asyncio.sleep(PAUSE_SECONDS)",
                "        except (StoreUnavailable, CommitInDoubt) as error:\n"
                "            raise KeyError(str(error)) from error",
            ),
        ),
        (
            Witness(
                _BUS + "test_while_its_database_is_away_a_consumer_keeps_its_messages",
                "assert await dead_letters.count_dead(bus, QUEUE) == 0",
            ),
        ),
    ),
    Guard(
        "own-keys",
        (1,),
        "What a service's user may publish begins with its name.",
        (Edit(USERS, 'says=rf"^{user}\\."', 'says=".*"'),),
        (Witness(_USERS + "test_the_broker_refuses_what_is_not_ones_own", _MAY),),
    ),
    Guard(
        "no-straight-way-into-a-queue",
        (1,),
        "A service's user cannot put anything into a queue past the exchange.",
        (Edit(USERS, 'own = rf"^({_SHARED}|', 'own = rf"^(amq\\.default|{_SHARED}|'),),
        (Witness(_USERS + "test_the_broker_refuses_what_is_not_ones_own", _MAY),),
    ),
    Guard(
        "own-words-live",
        (1,),
        "An event that came under another's key, or by a detour, is a dead letter.",
        (Edit(CONSUMER, "if not is_own(message):\n            why", "if not message:\n            why"),),
        (
            Witness(
                _USERS + "test_what_gets_past_the_broker_is_a_dead_letter_live_and_no_event_in_the_log",
                "await until(dead)",
            ),
        ),
    ),
    Guard(
        "own-words-in-the-log",
        (1,),
        "Nor is it read from the log.",
        (Edit(BUS, " is None and is_own(message):", " is None:"),),
        (
            Witness(
                _USERS + "test_what_gets_past_the_broker_is_a_dead_letter_live_and_no_event_in_the_log",
                "assert len(logged) == 1",
            ),
        ),
    ),
    Guard(
        "who-may-not-does-not-hammer",
        (6,),
        "A user that may not publish is told once a pause, and the broker is left alone so long.",
        (
            Edit(
                BUS,
                "                if self._was_refused:\n",
                "                if self._was_refused is None:\n",
            ),
        ),
        (
            Witness(
                _USERS + "test_a_user_that_may_not_is_told_once_and_does_not_hammer_the_broker",
                "await until(lambda: len(told()) >= 2)",
            ),
        ),
    ),
    Guard(
        "nodes-in-turn",
        (6,),
        "Of several nodes of the broker each is tried.",
        (Edit(BUS, "random.sample(known, len(known))", "known[:1]"),),
        (
            Witness(
                _BUS + "test_a_node_that_is_away_or_hangs_is_passed_over",
                "assert await bus.wait_connected(",
            ),
        ),
    ),
    Guard(
        "versions-that-cannot-be",
        (4,),
        "A version that cannot be mutes no later one.",
        (
            Edit(
                INBOX, "if event.aggregate_version > MOST_VERSIONS_AHEAD:", "if event.aggregate_version < 0:"
            ),
        ),
        (Witness(_KIT + "test_a_version_that_cannot_be_mutes_no_later_one", "DID NOT RAISE"),),
    ),
    Guard(
        "lost-bindings",
        (4, 10),
        "A subscriber that misses canaries looks into the log, declares its binding again and reads what it"
        " missed.",
        (Edit(CONSUMER, "                await self._bindings.look()\n", ""),),
        (
            Witness(
                _TOPOLOGY + "test_a_lost_binding_is_declared_again_and_what_was_published_meanwhile_is_taken",
                'await until(hears(sqlite_store, "a", "lost?"))',
            ),
        ),
    ),
    Guard(
        "what-a-lost-binding-cost",
        (4, 10),
        "After a lost binding the log is read from before the gap.",
        (
            Edit(
                CANARIES,
                "fresh = await self._read_again(seen.through_time - _MARGIN)",
                "fresh = 0",
            ),
        ),
        (
            Witness(
                _TOPOLOGY + "test_a_lost_binding_is_declared_again_and_what_was_published_meanwhile_is_taken",
                'await until(hears(sqlite_store, "a", "lost?"))',
            ),
        ),
    ),
    Guard(
        "gap-hidden-by-a-start",
        (4,),
        "A start declares the bindings again, and reads what was said if they had been gone.",
        (Edit(CONSUMER, "await self._read_log(hidden_since)", "pass"),),
        (
            Witness(
                _TOPOLOGY
                + "test_a_binding_that_is_lost_while_its_subscriber_is_away_is_found_at_its_next_start",
                'await until(hears(sqlite_store, "lost?"))',
            ),
        ),
    ),
    Guard(
        "unread-stands",
        (4,),
        "That a start has declared a binding and not yet read the log stands until it is read.",
        (Edit(CANARIES, '{"unread_time": seen.through_time}', '{"unread_time": None}'),),
        (
            Witness(
                _TOPOLOGY
                + "test_a_binding_that_is_lost_while_its_subscriber_is_away_is_found_at_its_next_start",
                "the next one does not know what is unread",
            ),
        ),
    ),
    Guard(
        "start-binds",
        (4,),
        "A start of a subscriber declares its bindings, also those that were there.",
        (
            Edit(
                CONSUMER,
                "                channel, queue, bindings, max_length",
                "                channel, queue, bindings if is_new else [], max_length",
            ),
        ),
        (
            Witness(
                _TOPOLOGY + "test_what_make_pending_names_helps_where_nothing_heals_by_itself",
                "await until(lambda: is_bound(broker, url, QUEUE))",
            ),
        ),
    ),
    Guard(
        "log-is-bound",
        (4, 10),
        "A publisher sees its canary come out of the log, or binds the log again and publishes again.",
        (Edit(CANARIES, "again = await self._store.write(self._send_again)", "again = 0"),),
        (
            Witness(
                _TOPOLOGY + "test_the_log_is_bound_again_and_gets_what_it_lacks", "await until(is_logged)"
            ),
        ),
    ),
    Guard(
        "refused-by-itself",
        (6,),
        "What a full queue refuses waits by itself, longer each time, and the others go on.",
        (
            Edit(
                RELAY,
                "refused.values(tries=tries + 1, claim_until=tx.now + pause(tries))",
                "refused.values(claim_until=None)",
            ),
        ),
        (
            Witness(
                _TOPOLOGY + "test_a_full_queue_of_somebody_elses_holds_up_nobody",
                "await until(all_refused)",
            ),
        ),
    ),
    Guard(
        "subscriber-loses-its-place",
        (4, 6),
        "Of a subscriber's full queue the oldest messages fall out, and no publisher is held up.",
        (
            Edit(
                BUS,
                '"x-overflow": "drop-head"',
                '"x-overflow": "reject-publish"',
            ),
        ),
        (
            Witness(
                _TOPOLOGY + "test_a_guest_whose_queue_is_full_loses_its_place_and_reads_the_log",
                "await until(unsent(sqlite_store))",
            ),
        ),
    ),
    Guard(
        "subscriber-reads-the-log",
        (4,),
        "A subscriber that lost its place reads the log.",
        (
            Edit(
                CONSUMER,
                "await self._read_log(await self._bindings.begin_of_gap())",
                "await self._bindings.begin_of_gap()",
            ),
            # What fell out is also found by the canaries among it, and by whoever starts soon after.
            Edit(CONSUMER, "await self._read_log(hidden_since)", "pass"),
            Edit(CONSUMER, "                await self._bindings.look()\n", ""),
        ),
        (
            Witness(
                _TOPOLOGY + "test_a_guest_whose_queue_is_full_loses_its_place_and_reads_the_log",
                "await until(hears(sqlite_store, *said))",
            ),
        ),
    ),
    Guard(
        "broker-blocks",
        (6,),
        "A broker that is short of memory or disk is noticed, and told of by a metric.",
        (Edit(BUS, "blocked = await _is_blocked(connection)", "blocked = False"),),
        (
            Witness(
                _TOPOLOGY + "test_a_broker_that_is_short_of_memory_is_noticed_and_all_is_sent_afterwards",
                "await until(lambda: publisher.bus.blocked)",
            ),
        ),
    ),
    Guard(
        "told-of-a-shorter-log",
        (4, 10),
        "Who joins when the log has forgotten something is told from when on it can read.",
        (Edit("dinemesh.kit.consumer", "        await self._tell_what_is_gone(mark, since)\n", ""),),
        (
            Witness(
                "tests/kit/test_log_age.py::"
                "test_who_joins_after_the_log_has_forgotten_something_is_told_from_when_on_it_can_read[sqlite]",
                "(warning,) = await join(late, bus, queue)",
            ),
        ),
    ),
)
