"""Each call of the sandbox is a line in its log, under the correlation id that the caller gave."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from dinemesh.kit.call import current
from dinemesh.kit.interceptors import Context, Handler, correlated, first_values

log = logging.getLogger(__name__)

_UNLOGGED = ("/grpc.health.v1.", "/grpc.reflection.")


class CallLog(grpc.aio.ServerInterceptor):
    """Stands before the sandbox's methods. Health checks and reflection are not worth a line."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler that logs its calls, wrapped once per method; unknown and unlogged methods as they
        are."""
        name = handler_call_details.method
        if name not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or name.startswith(_UNLOGGED):
                return handler
            self._wrapped[name] = _logging(name, handler)
        return self._wrapped[name]


def _logging(name: str, handler: Handler) -> Handler:
    behave: Any = handler.unary_unary

    async def call(request: Any, context: Context) -> Any:
        started = time.perf_counter()
        current.set(correlated(first_values(context), name, context.time_remaining()))
        code = "CANCELLED"  # what it is if neither an answer nor a failure comes first
        try:
            answer = await behave(request, context)
            code = "OK"
        except grpc.aio.AbortError:
            code = grpc.StatusCode(context.code()).name
            raise
        except Exception:
            code = "UNKNOWN"
            raise
        finally:
            log.info("call", extra={"code": code, "ms": round((time.perf_counter() - started) * 1000, 1)})
        return answer

    return grpc.unary_unary_rpc_method_handler(
        call, handler.request_deserializer, handler.response_serializer
    )
