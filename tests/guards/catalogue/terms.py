"""Promise 11: nobody is charged, or held to, terms that they never saw."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

_RESERVE = "tests/reservation/test_reserve.py::"
_NOT_REFUSED = "DID NOT RAISE"

GUARDS = (
    Guard(
        "policy-shown",
        (11,),
        "Another policy than the one that the customer was shown is refused before anything is held.",
        (
            Edit(
                "reservation_svc.domain.restaurants",
                "if shown == policy.etag or not now",
                "if shown or not now",
            ),
        ),
        (
            Witness(
                _RESERVE + "test_terms_that_were_not_shown_are_refused_before_anything_is_held[sqlite]",
                _NOT_REFUSED,
            ),
            Witness(
                _RESERVE + "test_a_new_attempt_is_held_against_the_terms_that_were_shown[sqlite]",
                "TRY_AGAIN_LATER",
            ),
        ),
        quick=True,
    ),
    Guard(
        "policy-in-the-body-hash",
        (11, 2),
        "The terms are part of what a request_id stands for.",
        (
            Edit(
                "reservation_svc.messages",
                "to_micros(at), party_size, shown, token, note)\n    return Order",
                "to_micros(at), party_size, token, note)\n    return Order",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_servicer.py::"
                "test_the_same_request_id_on_other_terms_is_another_request[sqlite]",
                "this should have been refused, and was answered",
            ),
        ),
        quick=True,
    ),
    Guard(
        "policy-name-of-every-field",
        (11,),
        "The etag of a policy names all of its fields, and both services name it alike.",
        (
            Edit(
                "reservation_svc.domain.restaurants",
                "return digest(asdict(policy))",
                'return digest({"deposit": policy.deposit_per_person, "currency": policy.currency})',
            ),
        ),
        (
            Witness(
                "tests/reservation/test_domain.py::test_the_etag_of_a_policy_names_each_of_its_fields",
                "assert changed.etag != POLICY.etag",
            ),
            Witness(
                "tests/kit/test_digest.py::test_reservation_names_its_copy_of_a_policy_as_the_restaurant_does",
                "assert copy.policy.etag == restaurant_messages.to_restaurant(restaurant).policy_etag",
            ),
        ),
        quick=True,
    ),
    Guard(
        "frozen-policy-of-a-modification",
        (11,),
        "A modification is held to the frozen policy, whatever the restaurant's says now.",
        (
            Edit(
                "reservation_svc.domain.reservations",
                "agreed = replace(restaurant, policy=self.policy)",
                "agreed = restaurant",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_modify.py::"
                "test_a_modification_is_held_to_the_frozen_policy_in_everything[sqlite]",
                "must be more than 2592000 seconds from now",
            ),
        ),
        quick=True,
    ),
    Guard(
        "currency-that-is-paid-with",
        (11,),
        "A deposit is agreed on in a currency that people pay with.",
        (
            Edit(
                "restaurant_svc.domain",
                "if not is_means_of_payment(policy.currency):",
                "if not policy.currency:",
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_usecases.py::"
                "test_a_restaurant_of_before_with_another_currency_is_kept_and_can_be_mended[sqlite]",
                _NOT_REFUSED,
            ),
        ),
        quick=True,
    ),
)
