"""The name of contents, and the one that matters: two services name one policy alike."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from dinemesh.kit.digest import digest
from dinemesh.restaurant.v1 import events_pb2
from protos.openapi import examples
from reservation_svc import messages as reservation_messages
from restaurant_svc import messages as restaurant_messages
from restaurant_svc.domain import Acceptance, Policy, Restaurant, RestaurantCreated

values = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(0, 2**40), st.text(max_size=8)), max_size=6
)
seconds = st.integers(0, 86_400)
policies = st.builds(
    Policy,
    deposit_per_person=st.integers(1, 10**9),
    currency=st.sampled_from(("EUR", "JPY", "KWD", "CLF", "EUE")),
    free_cancel_window_seconds=seconds,
    acceptance=st.sampled_from(Acceptance),
    acceptance_limit_seconds=seconds,
    acceptance_lead_seconds=seconds,
    no_show_grace_seconds=seconds,
    slot_interval_seconds=st.integers(1, 86_400),
    service_duration_seconds=st.integers(60, 86_400),
    max_party_size=st.integers(1, 1000),
)


@given(values)
def test_the_order_of_values_does_not_matter(contents: dict[str, str | int]) -> None:
    assert digest(contents) == digest(dict(reversed(contents.items())))


@given(values, st.text(max_size=8), st.sampled_from((0, "", False)))
def test_a_field_of_a_later_version_changes_no_name_until_it_is_used(
    contents: dict[str, str | int], field: str, unused: str | int
) -> None:
    contents.pop(field, None)
    assert digest(contents | {field: unused}) == digest(contents)
    assert digest(contents | {field: "used"}) != digest(contents)


def test_values_do_not_run_into_each_other() -> None:
    assert (
        len({digest(one) for one in ({"a": "1"}, {"a": 1}, {"a1": ""}, {"a": "1,b"}, {"a": 1, "b": 1})}) == 5
    )


@given(policies)
def test_reservation_names_its_copy_of_a_policy_as_the_restaurant_does(policy: Policy) -> None:
    """Codes that are not taken any more included: events that speak of them are kept."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    restaurant = Restaurant(
        "r", "Chez Nous", "Europe/Berlin", policy, version=1, create_time=now, update_time=now
    )
    told = restaurant_messages.encode_event(RestaurantCreated(restaurant)).message.SerializeToString()
    heard = events_pb2.RestaurantCreated.FromString(told)
    copy = reservation_messages.from_restaurant(heard.restaurant)
    assert copy.policy.etag == restaurant_messages.to_restaurant(restaurant).policy_etag


def test_the_name_of_a_policy_is_the_same_in_every_version() -> None:
    """Clients, and two versions side by side, hold these names against each other."""
    one = examples.POLICY
    policy = Policy(
        deposit_per_person=int(one["depositPerPerson"]["units"]) * 100,
        currency=one["depositPerPerson"]["currencyCode"],
        free_cancel_window_seconds=one["freeCancelWindowSeconds"],
        acceptance=Acceptance.AUTO,
        acceptance_limit_seconds=one["acceptanceLimitSeconds"],
        acceptance_lead_seconds=one["acceptanceLeadSeconds"],
        no_show_grace_seconds=one["noShowGraceSeconds"],
        slot_interval_seconds=one["slotIntervalSeconds"],
        service_duration_seconds=one["serviceDurationSeconds"],
        max_party_size=one["maxPartySize"],
    )
    assert policy.etag == examples.POLICY_ETAG == "sUZP48HZUyptcB1CiC9Ru_z5QyxzzYE_voDIca5SlwY"
