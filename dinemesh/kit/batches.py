"""Several events in one message of the broker, `dinemesh.event.v1.EventBatch`."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from dinemesh.event.v1 import envelope_pb2


def body_of(envelopes: Sequence[bytes]) -> bytes:
    """One message for these serialized envelopes, at least one. A single one travels as it is. Raises
    DecodeError if one of several is no envelope."""
    if len(envelopes) == 1:
        return envelopes[0]
    batch = envelope_pb2.EventBatch()
    for envelope in envelopes:
        batch.events.add().ParseFromString(envelope)
    return batch.SerializeToString()


def events_in(body: bytes) -> Sequence[envelope_pb2.Envelope]:
    """The envelopes of a message, at least one. Raises DecodeError."""
    return envelope_pb2.EventBatch.FromString(body).events or [envelope_pb2.Envelope.FromString(body)]


def bodies_in(body: bytes) -> Sequence[bytes]:
    """The serialized envelopes of a message; the message itself where it cannot be read."""
    try:
        events = envelope_pb2.EventBatch.FromString(body).events
    except DecodeError:
        return [body]
    return [event.SerializeToString() for event in events] or [body]


__all__ = ["DecodeError", "bodies_in", "body_of", "events_in"]
