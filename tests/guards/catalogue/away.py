"""Promises 6 and 7: what goes on while a part is away or sick."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

BREAKER = "reservation_svc.usecases.circuit_breaker"
BULKHEAD = "reservation_svc.usecases.bulkhead"
SAGA = "reservation_svc.usecases.saga"
_RESERVE = "tests/reservation/test_reserve.py::"
_ADMISSION = "tests/reservation/test_admission.py::"

GUARDS = (
    Guard(
        "start-without-a-broker",
        (6,),
        "A service starts and serves without a broker.",
        (
            Edit(
                "dinemesh.kit.service",
                'serving without it, events follow later", BROKER_SECONDS)\n                return',
                'serving without it, events follow later", BROKER_SECONDS)\n'
                "                await asyncio.sleep(0.1)\n                continue",
            ),
        ),
        (
            Witness(
                "tests/kit/test_service.py::test_without_a_broker_the_service_becomes_ready_all_the_same",
                "async with serving(tmp_path, arrange=arrange) as server:",
            ),
        ),
    ),
    Guard(
        "acceptance-deadline",
        (6,),
        "A restaurant that does not answer in time has declined, and the deposit goes back.",
        (
            Edit(
                "reservation_svc.domain.reservations",
                "if self.state is State.PENDING_ACCEPTANCE and self._is_late(now):",
                "if self.state is State.PENDING_ACCEPTANCE and not self.accept_deadline:",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_ends.py::"
                "test_without_an_answer_the_booking_is_declined_at_its_deadline[sqlite]",
                "assert (after.state, after.decline_cause) == (State.DECLINED,",
            ),
        ),
        quick=True,
    ),
    Guard(
        "breaker",
        (7,),
        "After failures of deposit itself new charges are refused at once, before anything is written.",
        (Edit(BREAKER, "failures >= self._thresholds.failures", "failures < 0"),),
        (
            Witness(
                _ADMISSION
                + "test_the_open_breaker_refuses_charges_and_lets_repeats_and_cheap_things_through[sqlite]",
                "assert pod.admission.state is BreakerState.OPEN",
            ),
        ),
        quick=True,
    ),
    Guard(
        "breaker-hears-several",
        (7, 9),
        "What one customer sees opens the breaker only if deposit's own health agrees.",
        (Edit(BREAKER, "len(self._failures_of) >= self._thresholds.customers", "failures"),),
        (
            Witness(
                _ADMISSION
                + "test_what_one_customer_sees_opens_the_breaker_only_if_deposit_is_not_healthy[sqlite-True]",
                "assert pod.admission.state is (BreakerState.CLOSED if healthy",
            ),
        ),
    ),
    Guard(
        "one-trial",
        (7,),
        "The breaker lets one attempt try, and goes by its outcome.",
        (
            Edit(
                BREAKER,
                "self._state is BreakerState.HALF_OPEN and self._trial is not None",
                "self._trial is self",
            ),
        ),
        (
            Witness(
                _ADMISSION + "test_one_trial_at_a_time_and_a_bad_one_opens_the_breaker_again[sqlite]",
                'assert len(pod.deposits.asked) == asked, "a second one was let in',
            ),
        ),
        quick=True,
    ),
    Guard(
        "charge-queue",
        (7,),
        "Who comes while all places are taken waits for a turn.",
        (Edit(BULKHEAD, "self._waiting >= self._queue_limit", "self._waiting >= 0"),),
        (
            Witness(
                _ADMISSION + "test_who_comes_when_all_places_are_taken_waits_and_is_served[sqlite]",
                "assert not second.done()",
            ),
        ),
        quick=True,
    ),
    Guard(
        "customers-take-turns",
        (7, 9),
        "Customers take turns in the queue, whatever each of them sent.",
        (
            Edit(
                BULKHEAD,
                "self._queue[customer_id] = waiters  # at the end",
                "self._queue[customer_id] = waiters; self._queue.move_to_end(customer_id, last=False)  #",
            ),
        ),
        (
            Witness(
                _ADMISSION + "test_customers_take_turns_whatever_each_of_them_sent",
                "async with asyncio.timeout(5):",
            ),
        ),
    ),
    Guard(
        "attempts-of-one",
        (7, 9),
        "One customer has few attempts in flight, on all pods together.",
        (
            Edit(BULKHEAD, "if self._of[customer_id] >= self._per_customer:", "if self._per_customer < 0:"),
            Edit(
                "reservation_svc.domain.requests",
                "unpaid.in_flight >= rules.attempts",
                "unpaid.in_flight < 0",
            ),
        ),
        (
            Witness(
                _ADMISSION + "test_a_customer_has_few_attempts_in_flight_on_all_pods_together[sqlite]",
                "assert len(pod.deposits.asked) == await pod.sold() == RULES.attempts",
            ),
        ),
    ),
    Guard(
        "nobody-squats",
        (3, 9),
        "Who takes no deposit again and again has to wait, and the others get the seats.",
        (
            Edit(
                "reservation_svc.domain.requests",
                "if unpaid.failed < rules.unpaid_free or",
                "if unpaid.failed < 1000 or",
            ),
        ),
        (
            Witness(
                _ADMISSION
                + "test_who_takes_no_deposit_again_and_again_has_to_wait_and_the_others_get_the_seats"
                "[sqlite-tok_declined]",
                'said = await refused("TRY_AGAIN_LATER", pod.reserve(10))',
            ),
        ),
        quick=True,
    ),
    Guard(
        "charges-limit",
        (7,),
        "Deposit sheds charges beyond its limit before anything is written.",
        (
            Edit(
                "deposit_svc.usecases",
                "if self._under_way.total() >= self._limits.charges_in_flight:",
                "if self._limits.charges_in_flight < 0:",
            ),
        ),
        (
            Witness(
                "tests/deposit/test_usecases.py::"
                "test_more_charges_than_allowed_are_shed_before_anything_is_recorded[sqlite]",
                "await asyncio.wait_for(pod.create(shed), 5)",
            ),
        ),
    ),
    Guard(
        "callers-deadline",
        (7,),
        "The charge gets the smaller of our own time and what the caller has left.",
        (Edit(SAGA, "timeout = min(timeout, left - ctx.limits.margin)", "pass"),),
        (
            Witness(
                _RESERVE + "test_the_charge_gets_the_smaller_of_our_time_and_the_callers[sqlite]",
                "assert 1 < second <= 1.85",
            ),
        ),
        quick=True,
    ),
    Guard(
        "too-little-time",
        (7,),
        "With too little time left nothing is begun.",
        (
            Edit(
                SAGA, "if left is not None and left < ctx.limits.least:", "if left is not None and left < 0:"
            ),
        ),
        (
            Witness(
                _RESERVE + "test_too_little_time_is_refused_before_anything_is_begun[sqlite]",
                'await refused("DEADLINE_TOO_SHORT", pod.reserve())',
            ),
        ),
        quick=True,
    ),
    Guard(
        "shed-before-the-writer",
        (7,),
        "The queue before the writer is bounded: beyond it new work is refused with a retry time.",
        (
            Edit(
                "dinemesh.kit.store",
                "if shed and len(self._waiting) >= self._queue_limit:",
                "if self._queue_limit < 0:",
            ),
        ),
        (
            Witness(
                "tests/kit/test_store.py::test_a_long_queue_sheds_what_may_be_shed[sqlite]",
                "with pytest.raises(Refusal) as refused:",
            ),
        ),
        quick=True,
    ),
)
