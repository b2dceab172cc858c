"""How each tale goes: what a visitor does, step by step, whatever befalls the mesh meanwhile."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping

from tests.mesh.people import Place
from tests.torture.books import Books
from tests.torture.plan import Story, Tale
from tests.torture.record import Call
from tests.torture.town import FREE_UNTIL, HURRIED_LIMIT, NEAR, Places, Town, Visitor

HEAD_START = 0.5
"""At most so many seconds one side of a race begins before the other."""


async def live(town: Town, story: Story, push: float = 0.0) -> None:
    """One story from beginning to end. `push`: so many seconds more of a start for one side of a race."""
    visitor = Visitor(town, story, _where(town.places, story), push=push)
    await _TALES[story.tale](visitor, story, town)


def _where(places: Places, story: Story) -> Place:
    by_tale = {
        Tale.ACCEPT: places.manual,
        Tale.DECLINE: places.manual,
        Tale.DECLINE_LATER: places.manual,
        Tale.CANCEL_OR_ACCEPT: places.manual,
        Tale.LAPSE: places.hurried,
        Tale.ACCEPT_OR_DEADLINE: places.hurried,
        Tale.SEAT: places.near,
        Tale.NO_SHOW: places.near,
        Tale.CANCEL_OR_NO_SHOW: places.near,
        Tale.CANCEL_OR_WINDOW: places.near,
        Tale.LAST_SEAT: places.tiny,
    }
    return by_tale.get(story.tale, places.easy)


async def _book(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        await visitor.sees("CONFIRMED")


async def _cancel(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        if visitor.chance.random() < 0.5:
            await visitor.sees("CONFIRMED")
        await visitor.cancel()
        await visitor.read()


async def _cancel_at_once(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        await asyncio.gather(*(visitor.cancel() for _ in range(3)))


async def _repeat(visitor: Visitor, story: Story, town: Town) -> None:
    await asyncio.gather(*(visitor.reserve_at_last() for _ in range(3)))
    await visitor.reserve_at_last()


async def _hang_up(visitor: Visitor, story: Story, town: Town) -> None:
    for _ in range(2):
        await visitor.reserve(visitor.chance.uniform(0.02, 1.0))
    if await visitor.reserve_at_last():
        await visitor.sees("CONFIRMED")


async def _bad_card(visitor: Visitor, story: Story, town: Town) -> None:
    await visitor.reserve_at_last()
    await visitor.reserve_at_last()


async def _hopeless(visitor: Visitor, story: Story, town: Town) -> None:
    await visitor.reserve_at_last(tries=2)


async def _slow_card(visitor: Visitor, story: Story, town: Town) -> None:
    visitor.card = "tok_slow_700"
    await _book(visitor, story, town)


async def _refund_fails(visitor: Visitor, story: Story, town: Town) -> None:
    visitor.card = "tok_refundFail"
    await _cancel(visitor, story, town)


async def _cheaper(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        await visitor.modify(visitor.party - 1)
        await visitor.sees("CONFIRMED")
        if visitor.chance.random() < 0.5:
            await visitor.cancel()


async def _dearer(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        if visitor.chance.random() < 0.5:
            await visitor.sees("CONFIRMED")
        await visitor.modify(visitor.party + 1, "tok_visa")
        if visitor.chance.random() < 0.5:
            await visitor.modify(visitor.party + 3, "tok_slow_300")
        if visitor.chance.random() < 0.5:
            await visitor.cancel()
        await visitor.read()


async def _dearer_bad_card(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        hopeless = visitor.chance.random() < 0.5
        card = "tok_lostReply" if hopeless else "tok_chargeDeclined"
        await visitor.modify(visitor.party + 1, card, tries=2 if hopeless else None)
        await visitor.sees("CONFIRMED")


async def _accept(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last() and await visitor.staff(Call.ACCEPT):
        await visitor.sees("CONFIRMED")
        if visitor.chance.random() < 0.3:
            await visitor.cancel()


async def _decline(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last() and await visitor.staff(Call.DECLINE):
        await visitor.sees("DECLINED")


async def _decline_later(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last() and await visitor.staff(Call.ACCEPT):
        if visitor.chance.random() < 0.5:
            await visitor.sees("CONFIRMED")
        await visitor.staff(Call.DECLINE)
        await visitor.sees("CANCELLED")


async def _lapse(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        await visitor.sees("DECLINED")


async def _seat(visitor: Visitor, story: Story, town: Town) -> None:
    _at_a_near_table(visitor)
    if await visitor.reserve_at_last() and await visitor.sees("CONFIRMED"):
        await visitor.staff(Call.SEAT)
        if visitor.chance.random() < 0.7:
            await visitor.staff(Call.COMPLETE)
        await visitor.cancel()  # too late


async def _no_show(visitor: Visitor, story: Story, town: Town) -> None:
    _at_a_near_table(visitor)
    if await visitor.reserve_at_last() and await visitor.sees("CONFIRMED"):
        await visitor.staff(Call.NO_SHOW)
        await visitor.sees("NO_SHOW")


async def _cancel_or_accept(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last() and await visitor.arrived():
        await _race(lambda: visitor.staff(Call.ACCEPT), visitor.cancel, _start(visitor, story))


async def _cancel_or_charge(visitor: Visitor, story: Story, town: Town) -> None:
    # The longest is a little shorter than reservation waits for deposit.
    visitor.card = "tok_slow_1200" if story.early and visitor.push else "tok_slow_900"

    async def cancel() -> None:
        while not await visitor.find() and not creating.done():
            await asyncio.wait((creating,), timeout=0.05)
        if visitor.seen is not None:
            if not story.early:
                await asyncio.sleep(1.0 + visitor.push)
            await visitor.cancel()

    creating = asyncio.create_task(visitor.reserve_at_last())
    await cancel()
    await creating


async def _cancel_or_no_show(visitor: Visitor, story: Story, town: Town) -> None:
    _at_a_near_table(visitor)
    if await visitor.reserve_at_last() and await visitor.sees("CONFIRMED"):
        await _until(visitor.dine_time)
        await _race(lambda: visitor.staff(Call.NO_SHOW), visitor.cancel, _start(visitor, story))
        await visitor.sees("NO_SHOW", "CANCELLED", seconds=3)


async def _cancel_or_window(visitor: Visitor, story: Story, town: Town) -> None:
    _at_a_near_table(visitor)
    if await visitor.reserve_at_last() and await visitor.sees("CONFIRMED"):
        moment = visitor.dine_time - dt.timedelta(seconds=FREE_UNTIL)
        await _until(moment - dt.timedelta(seconds=_start(visitor, story)))
        await visitor.cancel()


async def _accept_or_deadline(visitor: Visitor, story: Story, town: Town) -> None:
    if visitor.push and story.early:
        visitor.place = await town.less_hurried(visitor.push)
    if await visitor.reserve_at_last():
        if not story.early:
            await asyncio.sleep(HURRIED_LIMIT - 0.2 - _start(visitor, story))
        await visitor.staff(Call.ACCEPT)
        await visitor.sees("CONFIRMED", "DECLINED", seconds=5)


async def _modify_or_cancel(visitor: Visitor, story: Story, town: Town) -> None:
    if await visitor.reserve_at_last():
        party = visitor.party + (2 if visitor.chance.random() < 0.5 else -1)
        await _race(lambda: visitor.modify(party, "tok_slow_100"), visitor.cancel, _start(visitor, story))


async def _last_seat(visitor: Visitor, story: Story, town: Town) -> None:
    """Three seats, two parties of two."""
    rival = Visitor(town, story, visitor.place, rival=True)
    slots = visitor.place.slots
    for one in (visitor, rival):
        one.party, one.dine_time = 2, slots[story.number % len(slots)]
    await _race(visitor.reserve_at_last, rival.reserve_at_last, _start(visitor, story))


_TALES: Mapping[Tale, Callable[[Visitor, Story, Town], Awaitable[None]]] = {
    Tale.BOOK: _book,
    Tale.CANCEL: _cancel,
    Tale.CANCEL_AT_ONCE: _cancel_at_once,
    Tale.REPEAT: _repeat,
    Tale.HANG_UP: _hang_up,
    Tale.BAD_CARD: _bad_card,
    Tale.HOPELESS: _hopeless,
    Tale.SLOW_CARD: _slow_card,
    Tale.REFUND_FAILS: _refund_fails,
    Tale.CHEAPER: _cheaper,
    Tale.DEARER: _dearer,
    Tale.DEARER_BAD_CARD: _dearer_bad_card,
    Tale.ACCEPT: _accept,
    Tale.DECLINE: _decline,
    Tale.DECLINE_LATER: _decline_later,
    Tale.LAPSE: _lapse,
    Tale.SEAT: _seat,
    Tale.NO_SHOW: _no_show,
    Tale.CANCEL_OR_ACCEPT: _cancel_or_accept,
    Tale.CANCEL_OR_CHARGE: _cancel_or_charge,
    Tale.CANCEL_OR_NO_SHOW: _cancel_or_no_show,
    Tale.CANCEL_OR_WINDOW: _cancel_or_window,
    Tale.ACCEPT_OR_DEADLINE: _accept_or_deadline,
    Tale.MODIFY_OR_CANCEL: _modify_or_cancel,
    Tale.LAST_SEAT: _last_seat,
}


def outcome(story: Story, books: Books) -> str | None:
    """Who won the race of a story, read from the books; None if it was not run to its end."""
    found = [one for one in books.snapshot.reservations.values() if one.customer_id == story.customer]
    booked = next((one for one in found if one.state != "FAILED"), None)
    if story.tale is Tale.LAST_SEAT:
        rivals = [one.customer_id for one in books.snapshot.reservations.values() if one.state != "FAILED"]
        if booked is not None:
            return "the first"
        return "the second" if f"{story.customer}-rival" in rivals else None
    if booked is None:
        return None
    stages = books.stages.get(booked.reservation_id, ())
    happened = {stage.happened for stage in stages}
    cancelled = booked.state == "CANCELLED"
    match story.tale:
        case Tale.CANCEL_OR_ACCEPT if cancelled:
            return "accept" if "ReservationConfirmed" in happened else "cancel"
        case Tale.CANCEL_OR_CHARGE if cancelled:
            return "charge" if "ReservationPlaced" in happened else "cancel"
        case Tale.CANCEL_OR_NO_SHOW if cancelled or booked.state == "NO_SHOW":
            return "cancel" if cancelled else "no-show"
        case Tale.CANCEL_OR_WINDOW if cancelled:
            lines = books.snapshot.lines_of(booked.reservation_id)
            return "too late" if any(books.forfeited.get(one.deposit_id) for one in lines) else "free"
        case Tale.ACCEPT_OR_DEADLINE if booked.state in ("CONFIRMED", "DECLINED"):
            return "accept" if booked.state == "CONFIRMED" else "deadline"
        case Tale.MODIFY_OR_CANCEL if cancelled:
            return "modify" if "ReservationModified" in happened else "cancel"
        case _:
            return None


def _start(visitor: Visitor, story: Story) -> float:
    """How many seconds the one side of a race begins before the other; below zero, after it."""
    start = visitor.chance.uniform(0.0, HEAD_START) + visitor.push
    return start if story.early else -start


def _at_a_near_table(visitor: Visitor) -> None:
    earliest = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=NEAR + 2 * visitor.push)
    later = [moment for moment in visitor.place.slots if moment >= earliest]
    visitor.dine_time = later[0] if later else visitor.place.slots[-1]


async def _until(moment: dt.datetime) -> None:
    await asyncio.sleep(max(0.0, (moment - dt.datetime.now(dt.UTC)).total_seconds()))


async def _race(
    one: Callable[[], Awaitable[object]], other: Callable[[], Awaitable[object]], start: float
) -> None:
    """Both at once; the one has a start of so many seconds, the other if it is below zero."""

    async def after(seconds: float, run: Callable[[], Awaitable[object]]) -> None:
        await asyncio.sleep(max(0.0, seconds))
        await run()

    await asyncio.gather(after(-start, one), after(start, other))
