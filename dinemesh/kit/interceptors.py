"""What happens to every call, in this order, around the servicer's method:

correlation, metrics, identity, access, admission, the message of the request, the method itself; a refusal
becomes a rich status, and whatever else is raised becomes INTERNAL with an error id and no word of the cause.

It is one interceptor that wraps each method once, since every layer of grpc.aio costs time in each call.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc

from dinemesh.kit import errors, telemetry
from dinemesh.kit.call import (
    ANONYMOUS,
    CORRELATION_KEY,
    SERVICE,
    TRACEPARENT_KEY,
    Call,
    Identity,
    current,
    new_correlation_id,
)
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store_errors import CommitInDoubt, StoreUnavailable

log = logging.getLogger(__name__)

AUTHORIZATION_KEY = "authorization"

Access: TypeAlias = frozenset[str]
"""The roles that may call a method; ANYONE lets calls without a token in too."""
ANYONE: Access = frozenset({"anyone"})

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_CORRELATION = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
# Health and reflection: no token, no access table, no line in the log. Their streams are limited, unary calls
# are not: a probe that is refused would take a service out that is well.
_SYSTEM = ("/grpc.health.v1.", "/grpc.reflection.")
SYSTEM_STREAMS = 64
"""Streams of health and reflection that may be open together; more are refused, whoever asks."""
MESSAGE_SECONDS = 2.0
"""How long a call may wait for its first message. Libraries send it together with the headers, and a call
without one holds a place that everybody shares."""
MESSAGE_LOOKS = 8
"""Looks within that time. They are counted and the time is not measured, since after a pause of the process
messages that arrived in time are still unread."""
_STORE_RETRY_SECONDS = 1.0
_STREAM_RETRY_SECONDS = 5.0  # streams are long: a place is seldom free a second later


@dataclass(frozen=True, slots=True)
class Limit:
    """How many calls of a method may be at work. More are refused with `reason` before any work is done."""

    in_flight: int
    reason: str = "TRY_AGAIN_LATER"
    retry_after: float = 1.0


class TokenVerifier(Protocol):
    """Turns a token into an identity, or refuses it."""

    def verify(self, token: str) -> Identity:
        """Raises Refusal (TOKEN_INVALID, TOKEN_EXPIRED) for a token that proves no identity."""
        ...


class _Undecodable:
    """Stands for a request that could not be read; grpc.aio itself would answer UNKNOWN with the cause."""


_UNDECODABLE = _Undecodable()


class Chain(grpc.aio.ServerInterceptor):
    """The interceptor of a server. Tables are filled before the server starts."""

    def __init__(self, verifier: TokenVerifier, *, in_flight_limit: int, streams_per_subject: int) -> None:
        self._verifier = verifier
        self._in_flight_limit = in_flight_limit
        self._streams_per_subject = streams_per_subject
        self._access: dict[str, Access] = {}
        self._limits: dict[str, Limit] = {}
        self._in_flight: Counter[str] = Counter()
        self._total: Counter[bool] = Counter()  # streams and unary calls apart: a stream stays for an hour
        self._streams_of: Counter[str] = Counter()
        self._system_streams = 0
        self._wrapped: dict[str, Handler] = {}
        self.first_messages = _FirstMessages()
        self.open = True
        """False refuses every call of a business method with a retry time: the service is not set up yet."""

    def allow(self, access: Mapping[str, Access], limits: Mapping[str, Limit]) -> None:
        """Adds a servicer's tables, by full method name."""
        self._access.update(access)
        self._limits.update(limits)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        name = handler_call_details.method
        wrapped = self._wrapped.get(name)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler  # UNIMPLEMENTED by the library; not remembered, names are the client's choice
            wrapped = self._wrapped[name] = self._wrap(name, handler)
        return wrapped

    def _wrap(self, name: str, handler: Handler) -> Handler:
        guard = _Guard(self, name, handler)
        decode = _safe(handler.request_deserializer)
        # Answers are serialized inside the guard, so that one of the wrong type leaks nothing either.
        # To the library each is a stream of requests, the same on the wire. Its unary handlers are called
        # once the message is there: nobody would see, count or end a call without one (grpc-java 8866).
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(guard.stream_stream, decode, None)
        if handler.request_streaming:
            raise TypeError(f"{name}: client streams are not supported")
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(guard.unary_stream, decode, None)
        return grpc.stream_unary_rpc_method_handler(guard.unary_unary, decode, None)

    def identify(self, metadata: Mapping[str, str | bytes], access: Access) -> Identity:
        """Who asks. A broken token is refused even where none is needed: its sender believes to be known."""
        header = metadata.get(AUTHORIZATION_KEY)
        if header is None:
            if access is ANYONE:
                return ANONYMOUS
            raise Refusal("TOKEN_MISSING", "the call carries no bearer token")
        scheme, _, token = str(header).partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refusal("TOKEN_INVALID", "the authorization is not a bearer token")
        return self._verifier.verify(token.strip())

    def access_of(self, name: str) -> Access:
        """The roles of a method; nobody if its servicer did not list it."""
        return self._access.get(name, frozenset())

    def enter(self, name: str, identity: Identity, *, stream: bool) -> None:
        """Lets a call in, or refuses it because of the load. Every entered call leaves."""
        if not self.open:
            raise Refusal("TRY_AGAIN_LATER", "the service is starting", retry_after=1.0)
        limit = self._limits.get(name)
        if limit is not None and self._in_flight[name] >= limit.in_flight:
            raise Refusal(
                limit.reason, "too many calls of this method at once", retry_after=limit.retry_after
            )
        if self._total[stream] >= self._in_flight_limit:
            # A method with a reason of its own keeps it: its callers read "certainly not begun" from it.
            told = limit or Limit(self._in_flight_limit)
            raise Refusal(told.reason, "too many calls at once", retry_after=told.retry_after)
        if stream and _is_a_person(identity):
            if self._streams_of[identity.subject] >= self._streams_per_subject:
                raise Refusal(
                    "TRY_AGAIN_LATER", "too many watches of yours at once", retry_after=_STREAM_RETRY_SECONDS
                )
            self._streams_of[identity.subject] += 1
        self._in_flight[name] += 1
        self._total[stream] += 1

    def leave(self, name: str, identity: Identity, *, stream: bool) -> None:
        """Gives back the place that `enter` took with the same arguments, once for each entered call."""
        self._in_flight[name] -= 1
        self._total[stream] -= 1
        if stream and _is_a_person(identity):
            self._streams_of[identity.subject] -= 1
            if not self._streams_of[identity.subject]:
                del self._streams_of[identity.subject]  # people are many, and most watch nothing

    def enter_system_stream(self) -> None:
        """Lets a stream of health or reflection in, or refuses it. Every entered one leaves."""
        if self._system_streams >= SYSTEM_STREAMS:
            raise Refusal(
                "TRY_AGAIN_LATER",
                "too many streams of health and reflection at once",
                retry_after=_STREAM_RETRY_SECONDS,
            )
        self._system_streams += 1

    def leave_system_stream(self) -> None:
        """Gives back the place that `enter_system_stream` took."""
        self._system_streams -= 1


def _is_a_person(identity: Identity) -> bool:
    """Somebody with a name; services watch for many, and those without a token cannot be told apart."""
    return identity.role != SERVICE and identity is not ANONYMOUS


class _Guard:
    """One method with everything that stands around it."""

    def __init__(self, chain: Chain, name: str, handler: Handler) -> None:
        self._chain = chain
        self._name = name
        self._behave: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream
        self._encode: Callable[[Any], bytes] = handler.response_serializer or bytes
        self._system = name.startswith(_SYSTEM)
        self._stream = handler.response_streaming
        self._in_flight = telemetry.CALLS_IN_FLIGHT.labels(name)
        self._seconds = telemetry.CALL_SECONDS.labels(name)

    async def unary_unary(self, _requests: AsyncIterator[Any], context: Context) -> bytes:
        running = _Running(self, context)
        try:
            running.begin()
            request = await self._chain.first_messages.receive(context)
            if request is grpc.aio.EOF:
                raise _no_message()
            answer = self._encode(await self._behave(request, context))
            running.code = "OK"
            return answer
        except Exception as error:
            await running.fail(error)
            raise
        finally:
            running.end()

    async def unary_stream(self, _requests: AsyncIterator[Any], context: Context) -> None:
        await self._write_all(context, one_request=True)

    async def stream_stream(self, _requests: AsyncIterator[Any], context: Context) -> None:
        await self._write_all(context, one_request=False)

    async def _write_all(self, context: Context, *, one_request: bool) -> None:
        # Written here instead of yielded: a client that leaves then cancels this coroutine where it waits,
        # and the call is left at once, not when a generator is collected.
        running = _Running(self, context)
        try:
            running.begin()
            request = await self._chain.first_messages.receive(context)
            if one_request and request is grpc.aio.EOF:
                raise _no_message()
            handed_on = request if one_request else _following(request, context)
            async with aclosing(self._behave(handed_on, context)) as answers:
                async for answer in answers:
                    await context.write(self._encode(answer))
            running.code = "OK"
        except Exception as error:
            await running.fail(error)
            raise
        finally:
            running.end()

    def check(self, call: Call, metadata: Mapping[str, str | bytes]) -> Identity:
        """Identity, access, admission, in this order. Returns who was let in."""
        if self._system:
            if self._stream:
                self._chain.enter_system_stream()
            return ANONYMOUS
        access = self._chain.access_of(self._name)
        identity = self._chain.identify(metadata, access)
        current.set(_with_identity(call, identity))
        if access is not ANYONE and identity.role not in access:
            raise Refusal("PERMISSION_DENIED", "this role may not call this method")
        self._chain.enter(self._name, identity, stream=self._stream)
        return identity

    def left(self, identity: Identity) -> None:
        if not self._system:
            self._chain.leave(self._name, identity, stream=self._stream)
        elif self._stream:
            self._chain.leave_system_stream()

    def started(self) -> None:
        self._in_flight.inc()

    def ended(self, code: str, reason: str, seconds: float, given_seconds: float | None) -> None:
        """Counts and logs the call. `given_seconds` is what its caller had left when it came, if it told."""
        self._in_flight.dec()
        telemetry.CALLS.labels(self._name, code).inc()
        if not self._stream:
            self._seconds.observe(seconds)
        if self._system:
            return
        if reason:
            telemetry.REFUSALS.labels(self._name, reason).inc()
        extra: dict[str, object] = {"code": code, "reason": reason, "ms": round(seconds * 1000, 1)}
        if given_seconds is not None:
            extra["deadline_ms"] = round(given_seconds * 1000)
        log.info("call", extra=extra)

    @property
    def name(self) -> str:
        return self._name


class _Running:
    """One call on its way through a guard."""

    __slots__ = (
        "_call",
        "_context",
        "_given_seconds",
        "_guard",
        "_let_in",
        "_metadata",
        "_started",
        "code",
        "reason",
    )

    def __init__(self, guard: _Guard, context: Context) -> None:
        self._guard = guard
        self._context = context
        self._let_in: Identity | None = None
        self._started = time.perf_counter()
        self.code = "CANCELLED"  # what it is if neither an answer nor a failure comes first
        self.reason = ""
        self._metadata = first_values(context)
        self._given_seconds: float | None = context.time_remaining()
        self._call = correlated(self._metadata, guard.name, self._given_seconds)
        guard.started()

    def begin(self) -> None:
        # grpc.aio runs each call in a task of its own, so there is nothing to reset afterwards.
        current.set(self._call)
        # Trailing, never initial: a reply with early metadata is not seen as a failure by proxies.
        self._context.set_trailing_metadata(((CORRELATION_KEY, self._call.correlation_id),))
        self._let_in = self._guard.check(self._call, self._metadata)

    async def fail(self, error: Exception) -> None:
        """Answers with what the failure is to the client. asyncio.CancelledError never comes here."""
        if isinstance(error, grpc.aio.AbortError):  # the servicer has answered
            code = self._context.code()
            self.code = code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
            return
        try:
            refusal = _refusal_for(error)
            self.code, self.reason = errors.code_of(refusal.reason).name, refusal.reason
        except ValueError as unknown_reason:
            refusal = _last_resort(unknown_reason)
            self.code, self.reason = errors.code_of(refusal.reason).name, refusal.reason
        await errors.abort(self._context, refusal, ((CORRELATION_KEY, self._call.correlation_id),))

    def end(self) -> None:
        if self._let_in is not None:
            self._guard.left(self._let_in)
        spent = time.perf_counter() - self._started
        self._guard.ended(self.code, self.reason, spent, self._given_seconds)


def _refusal_for(error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case StoreUnavailable():
            return Refusal(
                "UNAVAILABLE",
                "the service cannot work at the moment; nothing was changed",
                retry_after=_STORE_RETRY_SECONDS,
            )
        case CommitInDoubt():
            return Refusal(
                "OUTCOME_UNKNOWN",
                "it is not known whether the change was made; repeat with the same request_id",
                retry_after=_STORE_RETRY_SECONDS,
            )
        case _:
            return _last_resort(error)


def _last_resort(error: Exception) -> Refusal:
    error_id = uuid.uuid4().hex
    log.error("unhandled failure", exc_info=error, extra={"error_id": error_id})
    return Refusal("INTERNAL", f"internal error {error_id}", metadata={"error_id": error_id})


def _undecodable() -> Refusal:
    return Refusal("INVALID_ARGUMENT", "the request is not a valid message of this method")


def _no_message() -> Refusal:
    return Refusal(
        "INVALID_ARGUMENT",
        "the call ended without its message: a frame of 5 bytes and the message, which may be empty",
    )


def _safe(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if decode is None:
        return None

    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except Exception:  # corrupt bytes and invalid UTF-8 fail in several ways
            return _UNDECODABLE

    return decoded


class _FirstMessages:
    """Receives what a call sends first, and ends the wait of those that send nothing.

    One timer for all calls: one for each, as of asyncio.timeout, costs a twentieth of a small call.
    """

    def __init__(self) -> None:
        self._looks = 0
        self._begun: dict[asyncio.Task[Any], int] = {}  # in the order of beginning
        self._late: set[asyncio.Task[Any]] = set()
        self._looking = False

    async def receive(self, context: Context) -> Any:
        """The first message, or EOF where the client's stream ends without one."""
        task = asyncio.current_task()
        assert task is not None
        self._begun[task] = self._looks
        if not self._looking:
            self._looking = True
            self._look_again()
        try:
            request = await context.read()
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel():
                raise  # by the client, or by its deadline
            # Not DEADLINE_EXCEEDED: by that, proxies take an instance for sick.
            raise Refusal(
                "INVALID_ARGUMENT", f"no message of the call has arrived within {MESSAGE_SECONDS:g} s"
            ) from None
        finally:
            self._begun.pop(task, None)
            self._late.discard(task)
        if request is _UNDECODABLE:
            raise _undecodable()
        return request

    def _look_again(self) -> None:
        asyncio.get_running_loop().call_later(MESSAGE_SECONDS / (MESSAGE_LOOKS + 1), self._look)

    def _look(self) -> None:
        self._looks += 1
        for task, begun in self._begun.items():
            if self._looks - begun <= MESSAGE_LOOKS:
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()
        if self._begun:
            self._look_again()
        else:
            self._looking = False


async def _following(request: Any, context: Context) -> AsyncIterator[Any]:
    """The first message of a stream of requests, and those behind it."""
    while request is not grpc.aio.EOF:
        if request is _UNDECODABLE:
            raise _undecodable()
        yield request
        request = await context.read()


def first_values(context: Context) -> dict[str, str | bytes]:
    """The metadata of a call; of a key that came twice, the first."""
    metadata: dict[str, str | bytes] = {}
    for key, value in context.invocation_metadata() or ():
        metadata.setdefault(key, value)
    return metadata


def correlated(metadata: Mapping[str, str | bytes], method: str, remaining: float | None) -> Call:
    """The call that is beginning, with the ids that came with it, or new ones where they cannot be read."""
    correlation = str(metadata.get(CORRELATION_KEY, ""))
    traceparent = str(metadata.get(TRACEPARENT_KEY, ""))
    return Call(
        correlation_id=correlation if _CORRELATION.fullmatch(correlation) else new_correlation_id(),
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else _new_traceparent(),
        method=method,
        deadline=None if remaining is None else time.monotonic() + remaining,
    )


def _new_traceparent() -> str:
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-00"


def _with_identity(call: Call, identity: Identity) -> Call:
    return Call(
        correlation_id=call.correlation_id,
        causation_id=call.causation_id,
        traceparent=call.traceparent,
        identity=identity,
        method=call.method,
        deadline=call.deadline,
    )
