"""Promise 9: everyone sees their own, errors leak nothing, no client can make a pod look sick."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

INTERCEPTORS = "dinemesh.kit.interceptors"
_INTERCEPTORS = "tests/kit/test_interceptors.py::"
PAGING = "dinemesh.kit.paging"
_PAGING = "tests/kit/test_paging.py::"
_SLOTS = "tests/restaurant/test_usecases.py::"

GUARDS = (
    Guard(
        "own-reservation",
        (9,),
        "A reservation is its customer's and its restaurant's; to others it is not there.",
        (
            Edit(
                "reservation_svc.domain.requests",
                "if self.customer_id is not None and self.customer_id == reservation.customer_id:",
                "if self.customer_id is not None:",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_ends.py::test_someone_elses_reservation_cannot_be_told_from_none[sqlite]",
                'await refused("NOT_FOUND", pod.cancel(booked, who))',
            ),
        ),
        quick=True,
    ),
    Guard(
        "own-deposit",
        (9,),
        "A deposit is its customer's.",
        (
            Edit(
                "deposit_svc.usecases",
                "if deposit is None or deposit.customer_id != customer_id:",
                "if deposit is None:",
            ),
        ),
        (
            Witness(
                "tests/deposit/test_usecases.py::test_a_customer_reads_only_their_own[sqlite]",
                "with pytest.raises(Refusal) as refusal:",
            ),
        ),
        quick=True,
    ),
    Guard(
        "own-timeline",
        (9,),
        "A timeline is its customer's.",
        (
            Edit(
                "history_svc.persistence",
                "query = select(timeline_entries).where(timeline_entries.c.customer_id == customer_id)",
                "query = select(timeline_entries)",
            ),
        ),
        (
            Witness(
                "tests/history/test_usecases.py::test_somebody_elses_reservation_is_not_found[sqlite]",
                'assert await history.kinds("bob") == []',
            ),
        ),
        quick=True,
    ),
    Guard(
        "own-booking",
        (9,),
        "Staff change bookings of their restaurant only.",
        (
            Edit(
                "restaurant_svc.usecases",
                "if before is None or before.restaurant_id != restaurant_id:",
                "if before is None:",
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_usecases.py::test_a_booking_of_another_restaurant_is_not_found[sqlite]",
                "with pytest.raises(Refusal) as refused:",
            ),
        ),
        quick=True,
    ),
    Guard(
        "own-restaurant",
        (9,),
        "Staff speak of the restaurant that their token names.",
        (
            Edit(
                "restaurant_svc.servicer",
                "if caller.role == STAFF and caller.restaurant_id != restaurant_id:",
                "if caller.role == STAFF and not restaurant_id:",
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_servicer.py::test_nobody_acts_for_a_restaurant_that_is_not_theirs",
                "return await refused(self.call(name, request, token))",
            ),
        ),
    ),
    Guard(
        "roles",
        (9,),
        "A method is called by the roles of its table only.",
        (
            Edit(
                INTERCEPTORS,
                "if access is not ANYONE and identity.role not in access:",
                "if access is not ANYONE and not identity.role:",
            ),
        ),
        (
            Witness(_INTERCEPTORS + "test_a_role_that_is_not_in_the_table_is_denied", "said = await"),
            Witness(
                _INTERCEPTORS + "test_a_method_that_no_table_names_is_closed",
                "said = await refused( stub.ListTimelineEntries(",
            ),
        ),
        quick=True,
    ),
    Guard(
        "signatures",
        (9,),
        "A token counts if it is signed by a known key, for us, and has not expired.",
        (
            Edit(
                "dinemesh.kit.identity",
                'options={"require": ["exp", "iss", "aud", "sub"], "verify_iat": False},',
                'options={"verify_signature": False},',
            ),
        ),
        (
            Witness(
                _INTERCEPTORS + "test_without_a_valid_token_a_call_is_unauthenticated",
                "said = await refused( server.stub.ListTimelineEntries(",
            ),
        ),
        quick=True,
    ),
    Guard(
        "errors-leak-nothing",
        (9,),
        "A failure that nobody foresaw is told as an error id, without a word of its cause.",
        (Edit(INTERCEPTORS, 'f"internal error {error_id}"', 'f"internal error {error_id}: {error!r}"'),),
        (
            Witness(
                _INTERCEPTORS + "test_an_unhandled_exception_tells_the_client_nothing_but_an_error_id",
                "assert SECRET not in said.everything",
            ),
        ),
        quick=True,
    ),
    Guard(
        "unreadable-is-the-clients-fault",
        (9,),
        "Bytes that are no request are the client's fault, and count against no pod.",
        (
            Edit(
                INTERCEPTORS,
                "        except Exception:  # corrupt bytes and invalid UTF-8 fail in several ways\n"
                "            return _UNDECODABLE",
                "        except Exception:  # corrupt bytes and invalid UTF-8 fail in several ways\n"
                "            raise",
            ),
        ),
        (
            Witness(
                _INTERCEPTORS + "test_bytes_that_are_no_message_are_an_invalid_argument",
                "assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT,",
            ),
        ),
        quick=True,
    ),
    Guard(
        "streams-of-one-person",
        (9,),
        "One person holds only so many watches.",
        (
            Edit(
                INTERCEPTORS,
                "if self._streams_of[identity.subject] >= self._streams_per_subject:",
                "if self._streams_per_subject < 0:",
            ),
        ),
        (
            Witness(
                _INTERCEPTORS + "test_one_person_holds_only_so_many_streams_and_nobody_else_is_touched",
                'said = await refused(opened("alice", seconds=1800))',
            ),
        ),
    ),
    Guard(
        "tokens-of-one-list",
        (9,),
        "A page or resume token is of one list or watch, with one request, of one caller.",
        (Edit(PAGING, "if self.encode(place, *scope) != token:", "if not place:"),),
        (
            Witness(
                _PAGING + "test_a_token_belongs_to_one_list_and_one_request[scope0]",
                "with pytest.raises(Refusal) as told:",
            ),
        ),
        quick=True,
    ),
    Guard(
        "tokens-hold-what-was-declared",
        (9,),
        "What a client made up in a token reaches no statement.",
        (
            Edit(PAGING, "if not self.lowest <= value <= self.highest:", "if value is None:"),
            Edit(PAGING, "if type(value) is not kind:", "if not isinstance(value, kind):"),
        ),
        (
            Witness(
                _PAGING + "test_a_value_of_another_type_or_range_is_refused[4-18446744073709551616]",
                "with pytest.raises(Refusal) as told:",
            ),
            Witness(
                _PAGING + "test_a_value_of_another_type_or_range_is_refused[4-True]",
                "with pytest.raises(Refusal) as told:",
            ),
        ),
        quick=True,
    ),
    Guard(
        "watches-read-pages",
        (9,),
        "However far back a watch begins, it reads a page at a time.",
        (
            Edit(
                "restaurant_svc.persistence",
                "tx.execute(query.order_by(*order).limit(limit))",
                "tx.execute(query.order_by(*order))",
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_usecases.py::"
                "test_a_feed_from_a_made_up_beginning_reads_page_by_page_and_misses_nothing[sqlite]",
                "assert len(page or ()) <= WATCH_BATCH",
            ),
        ),
        quick=True,
    ),
    Guard(
        "watches-rest",
        (9,),
        "A watch that is far behind rests between its pages.",
        (
            Edit(
                "dinemesh.kit.watch",
                "await asyncio.sleep(PAGE_PAUSE_SECONDS)",
                "await asyncio.sleep(0)",
            ),
        ),
        (
            Witness(
                "tests/kit/test_watch.py::"
                "test_a_watch_that_is_far_behind_leaves_time_and_turns_to_the_others",
                "assert seconds >= 9 * PAGE_PAUSE_SECONDS",
            ),
        ),
        quick=True,
    ),
    Guard(
        "watches-take-turns",
        (9,),
        "Watches leave a reader to the calls.",
        (
            Edit(
                "dinemesh.kit.watch",
                "            async with changes.turn:\n                found = await poll()",
                "            found = await poll()",
            ),
        ),
        (
            Witness(
                "tests/kit/test_watch.py::"
                "test_a_watch_that_is_far_behind_leaves_time_and_turns_to_the_others",
                "assert most == 1",
            ),
        ),
        quick=True,
    ),
    Guard(
        "calls-without-a-message",
        (9,),
        "A call whose message does not come is ended, and holds no place for long.",
        (
            Edit(
                INTERCEPTORS,
                "if self._looks - begun <= MESSAGE_LOOKS:",
                "if self._looks - begun <= 100 * MESSAGE_LOOKS:",
            ),
        ),
        (
            Witness(
                _INTERCEPTORS + "test_a_call_whose_message_never_comes_holds_a_place_and_is_ended",
                'assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")',
            ),
        ),
    ),
    Guard(
        "short-lines",
        (9,),
        "A line of a log is short, whatever somebody has sent.",
        (Edit("dinemesh.kit.log", "if len(line) <= MAX_LINE:", "if len(line) <= 1000 * MAX_LINE:"),),
        (
            Witness(
                "tests/kit/test_log.py::test_a_line_is_short_whatever_is_in_it[plain]",
                "assert len(line.encode()) <= MAX_LINE",
            ),
        ),
        quick=True,
    ),
    Guard(
        "quota-of-a-restaurant",
        (9,),
        "One restaurant's staff change so much, and then wait; the others go on.",
        (Edit("dinemesh.kit.quota", "if account.units <= 0:", "if self._burst <= 0:"),),
        (
            Witness(
                _SLOTS + "test_a_restaurant_that_changes_too_much_waits_and_the_others_do_not[sqlite]",
                "DID NOT RAISE",
            ),
        ),
        quick=True,
    ),
    Guard(
        "all-in-words",
        (9,),
        "A list of times that was lost on its way closes nothing: all slots have a word of their own.",
        (
            Edit(
                "restaurant_svc.messages",
                "if bool(request.times) == request.all_times:",
                "if request.times and request.all_times:",
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_servicer.py::test_a_list_of_times_that_is_empty_closes_nothing[sqlite]",
                "this should have been refused",
            ),
        ),
    ),
)
