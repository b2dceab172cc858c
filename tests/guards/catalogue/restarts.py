"""Promise 8: a planned restart fails no call, and liveness says only that the process lives."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

SERVICE = "dinemesh.kit.service"
WATCH = "dinemesh.kit.watch"
_SERVICE = "tests/kit/test_service.py::"
_WATCH = "tests/kit/test_watch.py::"
_UNDER_WAY = _SERVICE + "test_what_is_under_way_at_the_stop_is_finished_before_anything_is_closed"
_STOP = _SERVICE + "test_an_orderly_stop_serves_late_calls_finishes_running_ones_and_closes_in_reverse"

GUARDS = (
    Guard(
        "health-flip-first",
        (8,),
        "A stopping service says first that it is not ready.",
        (Edit(SERVICE, "        self.health.stop()\n", ""),),
        (Witness(_STOP, "await server.list() # a proxy that has not yet noticed still gets its an"),),
    ),
    Guard(
        "drain",
        (8,),
        "It serves on until proxies have noticed.",
        (Edit(SERVICE, "await _first(self._hurry, settings.drain_seconds)", "pass"),),
        (Witness(_STOP, "await server.list() # a proxy that has not yet noticed still gets its"),),
        quick=True,
    ),
    Guard(
        "running-calls-finish",
        (8,),
        "Calls that are running are finished.",
        (
            Edit(
                SERVICE, "await self._server.stop(settings.stop_grace_seconds)", "await self._server.stop(0)"
            ),
        ),
        (Witness(_UNDER_WAY, 'assert not running.done(), "the call was cut off"'),),
        quick=True,
    ),
    Guard(
        "shielded-work-finishes",
        (1, 8),
        "Work that outlived its caller is awaited before the store is closed.",
        (
            Edit(
                SERVICE,
                "await self.background.drain(settings.stop_grace_seconds)",
                "await self.background.drain(0)",
            ),
        ),
        (Witness(_UNDER_WAY, 'assert not work.done(), "the work was cut off"'),),
        quick=True,
    ),
    Guard(
        "watches-are-told",
        (8,),
        "Watches are told that the server stops.",
        (Edit(SERVICE, "            self.changes.stop()\n", ""),),
        (
            Witness(
                _SERVICE + "test_a_watch_is_told_that_the_server_stops",
                "assert (await first).end.reason == watch_pb2.END_REASON_SERVER_STOPPING",
            ),
        ),
    ),
    Guard(
        "terminal-message",
        (8,),
        "A watch ends with a message that says why: a broken stream looks complete.",
        (
            Edit(WATCH, "                    yield End.FINISHED\n", ""),
            Edit(WATCH, "yield End.SERVER_STOPPING", "pass"),
        ),
        (
            Witness(
                _WATCH + "test_it_ends_with_the_item_after_which_nothing_comes",
                'assert [item async for item in stream] == ["a", "last", End.FINISHED]',
            ),
            Witness(
                _WATCH + "test_it_ends_when_the_server_stops_after_what_was_still_new",
                "return await anext(stream)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "ready-after-catching-up",
        (8, 10),
        "A service is ready only when its subscriptions have read what was said before they existed.",
        (Edit(SERVICE, "        await self._catch_up()\n", ""),),
        (
            Witness(
                _SERVICE + "test_readiness_waits_until_a_subscription_has_caught_up",
                "assert not server.service.health.ready",
            ),
        ),
        quick=True,
    ),
    Guard(
        "liveness-is-its-own",
        (8,),
        "Liveness does not follow the checks of dependencies.",
        (
            Edit(
                "dinemesh.kit.health",
                'if service == LIVE:\n            return "SERVING"',
                'if service == LIVE:\n            return "SERVING" if self._ready else "NOT_SERVING"',
            ),
        ),
        (
            Witness(
                _SERVICE + "test_readiness_follows_a_check_and_liveness_does_not",
                "assert live.status != NOT_SERVING",
            ),
        ),
    ),
    Guard(
        "readiness-follows-the-database",
        (8,),
        "A service whose database is away is not ready.",
        (
            Edit(
                SERVICE,
                "                return name\n        return None",
                "                continue\n        return None",
            ),
        ),
        (
            Witness(
                _SERVICE + "test_readiness_follows_a_check_and_liveness_does_not",
                "await until(lambda: not server.service.health.ready)",
            ),
        ),
    ),
    Guard(
        "hung-process-is-killed",
        (8,),
        "A part that misses its liveness checks in a row is killed, and started again.",
        (Edit("local_mesh.liveness", "return self._misses[pid] >= MISSES", "return False"),),
        (
            Witness(
                "tests/local_mesh/test_liveness.py::test_a_part_that_falls_silent_is_killed_at_the_third_miss",
                "assert [watch.saw(1, 20, answered=False) for _ in range(MISSES)] ==",
            ),
        ),
        quick=True,
    ),
)
