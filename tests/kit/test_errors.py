"""Every reason of the contract has its status."""

from __future__ import annotations

import grpc
import pytest

from dinemesh.error.v1 import reason_pb2
from dinemesh.kit import errors

REASONS = [name.removeprefix("REASON_") for name in list(reason_pb2.Reason.keys())[1:]]


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_has_a_code_that_is_a_failure(reason: str) -> None:
    assert errors.code_of(reason) not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


def test_a_planned_refusal_is_neither_ejected_nor_retried_by_a_mesh() -> None:
    for reason in ("TRY_AGAIN_LATER", "DEPOSIT_OVERLOADED"):
        assert errors.code_of(reason) is grpc.StatusCode.RESOURCE_EXHAUSTED
    for reason in ("OUTCOME_UNKNOWN", "DEPOSIT_IN_DOUBT", "REQUEST_IN_PROGRESS"):
        assert errors.code_of(reason) is grpc.StatusCode.ABORTED


def test_a_reason_outside_the_contract_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="NO_SUCH"):
        errors.code_of("NO_SUCH")
