"""Promises 6 and 7: what goes on while a part is away or sick."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

DOOR = "reservation_svc.usecases.door"
DESK = "reservation_svc.usecases.desk"
_RESERVE = "tests/reservation/test_reserve.py::"

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
                "if self.state is State.PENDING_ACCEPTANCE and self.accept_deadline and now >=",
                "if self.state is State.PENDING_ACCEPTANCE and not self.accept_deadline and now >=",
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
        "After bad outcomes in a row new charges are refused at the door, before anything is written.",
        (Edit(DOOR, "self._bad_in_a_row >= self._threshold:", "self._threshold < 0:"),),
        (
            Witness(
                _RESERVE
                + "test_the_breaker_refuses_at_the_door_and_lets_repeats_and_cheap_things_through[sqlite]",
                'said = await refused("TRY_AGAIN_LATER", pod.reserve())',
            ),
        ),
        quick=True,
    ),
    Guard(
        "one-trial",
        (7,),
        "The breaker lets one attempt try, and goes by its outcome.",
        (Edit(DOOR, "self._state is BreakerState.HALF_OPEN and self._trial is not None", "not self._limit"),),
        (
            Witness(
                _RESERVE + "test_one_trial_at_a_time_and_a_bad_one_opens_the_breaker_again[sqlite]",
                'assert len(pod.deposits.asked) == asked, "a second one was let in',
            ),
        ),
        quick=True,
    ),
    Guard(
        "attempts-limit",
        (7,),
        "Only so many attempts are paid at once; more are refused at the door.",
        (Edit(DOOR, "if self._in_flight >= self._limit:", "if self._in_flight < 0:"),),
        (
            Witness(
                _RESERVE + "test_more_attempts_than_fit_are_refused_at_the_door[sqlite]",
                "assert said.retry_after == 1",
            ),
        ),
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
                "await asyncio.wait_for(desk.create(shed), 5)",
            ),
        ),
    ),
    Guard(
        "callers-deadline",
        (7,),
        "The charge gets the smaller of our own time and what the caller has left.",
        (Edit(DESK, "timeout = min(timeout, left - self.limits.margin)", "pass"),),
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
                DESK, "if left is not None and left < self.limits.least:", "if left is not None and left < 0:"
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
