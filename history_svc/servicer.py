"""HistoryService over gRPC: the caller's own timeline, to list and to watch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import grpc

from dinemesh.history.v1 import history_service_pb2 as api
from dinemesh.history.v1 import history_service_pb2_grpc
from dinemesh.kit import call, paging, wire
from dinemesh.kit.form import Form
from dinemesh.kit.interceptors import Access
from dinemesh.kit.watch import Changes, End, Heartbeat, Pace, tail
from history_svc import messages
from history_svc.usecases import Timeline

SERVICE_NAME = "dinemesh.history.v1.HistoryService"
ACCESS: Mapping[str, Access] = {
    f"/{SERVICE_NAME}/ListTimelineEntries": frozenset({call.CUSTOMER}),
    f"/{SERVICE_NAME}/WatchTimeline": frozenset({call.CUSTOMER}),
}

PAGE_SIZE = 50
MAX_PAGE_SIZE = 200

_Context = grpc.aio.ServicerContext[Any, Any]


class HistoryServicer(history_service_pb2_grpc.HistoryServiceServicer):
    """Every customer reads their own timeline only; which role may call stands in ACCESS."""

    def __init__(self, timeline: Timeline, changes: Changes, pace: Pace) -> None:
        self._timeline = timeline
        self._changes = changes
        self._pace = pace

    async def ListTimelineEntries(
        self, request: api.ListTimelineEntriesRequest, context: _Context
    ) -> api.ListTimelineEntriesResponse:
        form = Form()
        reservation_id = form.read(_reservation_id, request.reservation_id)
        size = form.read(paging.page_size, request.page_size, PAGE_SIZE, MAX_PAGE_SIZE)
        form.close()
        scope = call.identity().subject, reservation_id
        after = messages.PAGES.decode(request.page_token, *scope)
        page = await self._timeline.entries(*scope, after, size)
        token = messages.PAGES.encode(page.next_place, *scope) if page.next_place else ""
        return api.ListTimelineEntriesResponse(
            entries=map(messages.to_entry, page.entries), next_page_token=token
        )

    async def WatchTimeline(
        self, request: api.WatchTimelineRequest, context: _Context
    ) -> AsyncIterator[api.WatchTimelineResponse]:
        reservation_id = _reservation_id(request.reservation_id)
        customer_id = call.identity().subject
        cursor = messages.cursor_of(request.resume_token, customer_id, reservation_id)
        feed = await self._timeline.watch(customer_id, reservation_id, cursor)
        async with aclosing(tail(feed.poll, self._changes, customer_id, self._pace)) as items:
            async for item in items:
                if isinstance(item, End):
                    yield api.WatchTimelineResponse(end=item.message())
                elif isinstance(item, Heartbeat):
                    yield api.WatchTimelineResponse(heartbeat=item.message())
                else:
                    entry, place = item
                    yield api.WatchTimelineResponse(
                        entry=messages.to_entry(entry),
                        resume_token=messages.resume_token(place, customer_id, reservation_id),
                    )


def _reservation_id(asked: str) -> str:
    return wire.uuid_field("reservation_id", asked) if asked else ""
