"""Promise 1: where the money of a deposit is, whatever fails."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

USECASES = "deposit_svc.usecases"
DOMAIN = "deposit_svc.domain"
_DEPOSIT = "tests/deposit/test_usecases.py::"
_RESERVE = "tests/reservation/test_reserve.py::"
_RECONCILE = "tests/deposit/test_reconcile.py::"

GUARDS = (
    Guard(
        "intent-before-charge",
        (1,),
        "The intent is committed before the provider is asked, so that a crash in between is found.",
        (
            Edit(
                USECASES,
                "if persistence.add(tx, intent, settle_time):",
                "if persistence.find(tx, order.deposit_id) is None:",
            ),
            # It is written down with the outcome instead, so that all goes well while nothing fails.
            Edit(
                USECASES,
                "deposit = self._move(tx, deposit_id, decide, known)",
                "if known is not None:\n"
                "            persistence.add(tx, known, known.create_time)\n"
                "        deposit = self._move(tx, deposit_id, decide, known)",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_crash_between_charge_and_capture_is_settled_by_the_next_process[sqlite]",
                "assert (await pod.read(deposit_id)).state is State.PENDING",
            ),
        ),
        quick=True,
    ),
    Guard(
        "provider-key",
        (1, 2),
        "The provider is asked under the deposit_id, by which reconciling finds the charge again.",
        (
            Edit(
                USECASES,
                "self._provider.charge(intent.deposit_id, intent.amount",
                "self._provider.charge(f'{intent.deposit_id}/{time_left()}', intent.amount",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_lost_reply_is_in_doubt_and_reconciling_finds_the_capture[sqlite]",
                "assert (await pod.read(deposit_id)).held == 3000",
            ),
        ),
        quick=True,
    ),
    Guard(
        "shielded-charge",
        (1, 7),
        "What a call has begun runs to its end although the caller hangs up.",
        (Edit("dinemesh.kit.workers", "return await asyncio.shield(task)", "return await task"),),
        (
            Witness(
                _DEPOSIT + "test_a_caller_that_leaves_during_the_charge_does_not_lose_the_outcome[sqlite]",
                "assert (await pod.read(deposit_id)).standing is",
            ),
            Witness(
                _RESERVE + "test_a_caller_who_hangs_up_does_not_stop_the_work[sqlite]",
                "assert (await pod.reserve(request_id=request_id)).state is",
            ),
            Witness(
                "tests/kit/test_workers.py::test_shielded_work_finishes_after_its_caller_was_cancelled",
                "assert done.is_set()",
            ),
        ),
        quick=True,
    ),
    Guard(
        "deposit-reconciling",
        (1,),
        "Deposit reconciles what a crash or a silent provider left undecided.",
        (
            Edit(
                USECASES,
                "claimed = await self._claim(window) if is_due and window.free else []",
                "claimed: list[Open] = []",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_crash_between_charge_and_capture_is_settled_by_the_next_process[sqlite]",
                "assert (await pod.read(deposit_id)).held == 3000",
            ),
            Witness(
                _DEPOSIT + "test_a_charge_that_never_arrived_is_closed_and_ends_void[sqlite]",
                "assert (await pod.read(deposit_id)).state is State.VOIDED",
            ),
        ),
        quick=True,
    ),
    Guard(
        "reconciling-lease",
        (1,),
        "What is being reconciled is claimed for a while, so that two pods do not both ask the provider.",
        (
            Edit(
                "deposit_svc.persistence",
                'tx.execute(_CLAIM_CHARGES, times | {"most": most})',
                'tx.execute(_CLAIM_CHARGES, times | {"most": most, "until": tx.now})',
            ),
        ),
        (
            Witness(
                "tests/deposit/test_persistence.py::"
                "test_what_is_due_is_claimed_by_one_and_comes_back_after_the_lease[sqlite]",
                "assert await claim(store) == []",
            ),
        ),
        quick=True,
    ),
    Guard(
        "reconciling-window",
        (1,),
        "A place at the provider that gets free is taken at once: what hangs holds up only itself.",
        (Edit(USECASES, "await self._until_something_changes(window)", "await window.wait()"),),
        (
            Witness(
                _RECONCILE + "test_a_refund_that_hangs_holds_up_only_itself[sqlite]",
                "await until(lambda: set(others) <= provider.refunds.keys())",
            ),
        ),
        quick=True,
    ),
    Guard(
        "places-by-kind",
        (1,),
        "Charges that hang never take all places at the provider, so that refunds go on.",
        (
            Edit(
                USECASES, "largest, ahead = max(1, int(places * LARGEST_SHARE)),", "largest, ahead = places,"
            ),
        ),
        (
            Witness(
                _RECONCILE + "test_places_are_bounded_and_charges_that_hang_leave_some_to_refunds[sqlite]",
                "await until(lambda: ",
            ),
        ),
        quick=True,
    ),
    Guard(
        "failing-rows-wait",
        (1, 3),
        "A reservation that fails while it is reconciled waits, and the others go on.",
        (
            Edit(
                "reservation_svc.usecases.reconcile",
                "except (StoreUnavailable, CommitInDoubt):",
                "except Exception:",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_reconcile.py::"
                "test_rows_that_fail_wait_longer_each_time_and_hold_up_no_other[sqlite]",
                "await pod.reconcile()",
            ),
        ),
        quick=True,
    ),
    Guard(
        "clock-jump",
        (1,),
        "A clock that would end too many bookings at once ends none before an operator says so.",
        (
            Edit(
                "reservation_svc.usecases.clock",
                "count > max(rules.lapse_floor, rules.lapse_share * alive[kind])",
                "count < 0",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_reconcile.py::"
                "test_a_clock_that_jumps_ends_nothing_before_an_operator_says_so_and_each_jump_anew[sqlite]",
                "assert await states(small, *placed, answered) == {State.PENDING_ACCEPTANCE}",
            ),
        ),
        quick=True,
    ),
    Guard(
        "word-for-what-was-seen",
        (1,),
        "An operator's word that the clock is right holds for what was counted then, and for nothing later.",
        (Edit("operations.lapses", "if moment > held.held_time:", "if moment < 0:"),),
        (
            Witness(
                "tests/reservation/test_reconcile.py::"
                "test_a_word_for_a_time_that_nobody_has_seen_is_refused[sqlite]",
                "== operations.EXIT_CANNOT",
            ),
        ),
        quick=True,
    ),
    Guard(
        "reservation-reconciling",
        (1, 3, 6),
        "Reservation ends what nobody finished: attempts, deadlines, bookings that nobody marked.",
        (
            Edit(
                "reservation_svc.usecases.reconcile",
                "LATE.set(lateness.total_seconds())",
                "due = []",
            ),
        ),
        (
            Witness(
                _RESERVE + "test_a_hold_that_nobody_finished_ends_with_a_void[sqlite]",
                "assert (failed.state, failed.failure) == (State.FAILED,",
            ),
            Witness(
                "tests/reservation/test_ends.py::"
                "test_without_an_answer_the_booking_is_declined_at_its_deadline[sqlite]",
                "assert (after.state, after.decline_cause) == (State.DECLINED,",
            ),
        ),
        quick=True,
    ),
    Guard(
        "void-of-an-unknown-outcome",
        (1, 7),
        "An attempt whose outcome is not known orders a void of its deposit.",
        (
            Edit(
                "reservation_svc.domain.reservations",
                "return Move(late._void(deposit_id, Cause.FAILED)._moved(now), EventType.FAILED)",
                "return Move(late._moved(now), EventType.FAILED)",
            ),
        ),
        (
            Witness(
                _RESERVE + "test_an_unknown_outcome_frees_the_seats_and_voids[sqlite-tok_unknown]",
                "assert [(one.kind, one.deposit_id) for one in failed.instructions] ==",
            ),
        ),
        quick=True,
    ),
    Guard(
        "unknown-is-not-free",
        (1, 7),
        'Only an answer that says so means "not charged"; everything else is unknown.',
        (
            Edit(
                "reservation_svc.clients.deposit",
                "    return Unknown(detail, answered=said is not None and said.reason in _OF_ONE_CALL)",
                "    return NotCharged()",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_client.py::test_an_answer_means_what_the_table_says",
                "assert type(found) is outcome",
            ),
            Witness(
                "tests/reservation/test_client.py::test_nobody_there_is_unknown_and_not_healthy",
                "assert isinstance(await client.create(CHARGE, 1), Unknown)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "overload-before-intent",
        (1, 7),
        "DEPOSIT_OVERLOADED is said only of a deposit of which nothing is written.",
        (Edit(USECASES, "        if not known:\n", "        if known is not None:\n"),),
        (
            Witness(
                _DEPOSIT + "test_overload_is_never_said_of_a_deposit_that_may_be_charged[sqlite]",
                'assert await refused(pod, ids[0]) == "DEPOSIT_IN_DOUBT"',
            ),
        ),
        quick=True,
    ),
    Guard(
        "void-of-an-unseen-deposit",
        (1,),
        "The void of a deposit_id that was never seen is written down at once: a tombstone.",
        (
            Edit(
                USECASES,
                "if isinstance(instruction, VoidOrder):\n                unseen",
                "if not instruction:\n                unseen",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_void_of_an_unseen_deposit_leaves_a_tombstone_for_the_late_charge[sqlite]",
                "assert (await pod.read(deposit_id)).state is State.VOIDED -> AssertionError",
            ),
            Witness(
                "tests/deposit/test_handlers.py::"
                "test_a_failed_reservation_voids_a_deposit_that_was_never_seen[sqlite]",
                "stone = await pod.read(deposit_id)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "tombstone",
        (1,),
        "A late CreateDeposit runs into the tombstone and is not charged.",
        (Edit(USECASES, "if not is_new:", "if not is_new and deposit.body_hash:"),),
        (
            Witness(
                _DEPOSIT + "test_a_void_of_an_unseen_deposit_leaves_a_tombstone_for_the_late_charge[sqlite]",
                "assert pod.provider.charge_calls == 0",
            ),
        ),
        quick=True,
    ),
    Guard(
        "capture-after-void",
        (1,),
        "A charge that comes back after its void is given back in the transaction that captures it.",
        (
            Edit(
                DOMAIN,
                "return Step(returned, (self._charged, ordered), DepositCaptured(returned))",
                "return Step(captured, (self._charged,), DepositCaptured(captured))",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_capture_that_comes_back_after_the_void_is_returned[sqlite]",
                "assert (await pod.read(deposit_id)).standing is",
            ),
            Witness(
                _DEPOSIT + "test_a_void_that_reaches_the_provider_after_the_charge_returns_it[sqlite]",
                "assert (await pod.read(deposit_id)).standing is",
            ),
        ),
        quick=True,
    ),
    Guard(
        "instruction-once",
        (1, 4),
        "A money instruction is recorded by its id and applied once, however many events carry it.",
        (
            Edit(
                USECASES,
                "if not persistence.record(tx, instruction):\n                continue",
                "persistence.record(tx, instruction)",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_forfeit_told_twice_is_kept_once[sqlite]",
                "await pod.apply_instructions(order, order)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "instruction-waits",
        (1, 4),
        "A refund or forfeit that is heard before its charge is decided waits for it.",
        (
            Edit(
                DOMAIN,
                "elif deposit is None or deposit.state in (State.PENDING, State.VOIDING):\n"
                "        return Applied.WAITING, None",
                "elif deposit is None:\n        return Applied.WAITING, None",
            ),
        ),
        (
            Witness(
                _DEPOSIT
                + "test_a_refund_ordered_while_the_charge_is_undecided_is_made_after_the_capture[sqlite]",
                "assert (deposit.held, deposit.refunded, deposit.forfeited) == (0,",
            ),
        ),
        quick=True,
    ),
    Guard(
        "held-is-the-limit",
        (1,),
        "No refund or forfeit takes more than is still held.",
        (Edit(DOMAIN, "return Money(min(amount.minor, self.held), amount.currency)", "return amount"),),
        (
            Witness(
                "tests/deposit/test_domain.py::test_a_refund_or_forfeit_never_takes_more_than_is_held",
                "assert (deposit.held, deposit.refunding) == (0, 3000)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "refund-key",
        (1,),
        "A refund is repeated under the same key until the provider has answered.",
        (
            Edit(
                USECASES,
                "self._provider.refund(refund.provider_key, one.deposit_id, refund.amount)",
                "self._provider.refund(f'{refund.provider_key}/{id(object())}/{one.tries}', "
                "one.deposit_id, refund.amount)",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_refund_whose_reply_is_lost_is_asked_for_again_under_the_same_key[sqlite]",
                "assert (await pod.read(deposit.deposit_id)).standing is Standing.REFUNDED",
            ),
        ),
        quick=True,
    ),
    Guard(
        "refund-retry-key",
        (1,),
        "An operator's retry of a refused refund has a key of its own.",
        (
            Edit(
                DOMAIN,
                'return f"{self.refund_id}/{self.attempt}" if self.attempt else self.refund_id',
                "return self.refund_id",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_a_refused_refund_is_listed_until_an_operator_retries_it[sqlite]",
                "assert (done.standing, done.refunds[0].state) == (Standing.REFUNDED, RefundState.SUCCEEDED)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "ledger",
        (1,),
        "Every movement of money is two lines of the ledger, in the transaction that moves it.",
        (
            Edit(
                "deposit_svc.persistence",
                "for entry in movement.entries",
                "for entry in movement.entries[:1]",
            ),
        ),
        (
            Witness(
                _DEPOSIT + "test_the_ledger_shows_where_each_cent_is[sqlite]",
                "assert await pod.store.read(persistence.ledger_balances) == {",
            ),
        ),
        quick=True,
    ),
    Guard(
        "deposit-guarded-update",
        (1, 4),
        "A deposit moves only from the version and state that it was seen in.",
        (
            Edit(
                "deposit_svc.persistence",
                '    deposits.c.deposit_id == bindparam("key"),\n'
                '    deposits.c.version == bindparam("version_before"),\n'
                '    deposits.c.state == bindparam("state_before"),\n',
                '    deposits.c.deposit_id == bindparam("key"),\n'
                '    bindparam("version_before") >= 0,\n'
                "    bindparam(\"state_before\") != '',\n",
            ),
        ),
        (
            Witness(
                "tests/deposit/test_persistence.py::test_a_step_from_an_older_version_is_not_saved[sqlite]",
                "assert not await save(store, deposit, deposit.capture(clock.now))",
            ),
        ),
        quick=True,
    ),
)
