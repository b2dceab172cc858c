"""The checks of the contracts let good ones pass and go red on bad ones."""

import shutil
from pathlib import Path

import pytest

from protos.check import (
    BASELINE,
    Unfit,
    check_baseline,
    check_breaking,
    check_form,
    check_lint,
)
from protos.generate import SOURCES

RESERVATION = "dinemesh/reservation/v1/reservation.proto"
RESERVATION_SERVICE = "dinemesh/reservation/v1/reservation_service.proto"
DEPOSIT_SERVICE = "dinemesh/deposit/v1/deposit_service.proto"
EVENTS = "dinemesh/reservation/v1/events.proto"
REASON = "dinemesh/error/v1/reason.proto"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the contracts, to spoil."""
    copy = tmp_path / "protos"
    shutil.copytree(SOURCES / "dinemesh", copy / "dinemesh")
    shutil.copy(SOURCES / "buf.yaml", copy)
    return copy


def spoil(sources: Path, name: str, old: str, new: str) -> None:
    path = sources / name
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} should be once in {name}"
    path.write_text(text.replace(old, new))


def test_the_contracts_are_in_form() -> None:
    check_form()


def test_the_contracts_pass_the_lint() -> None:
    check_lint()


def test_the_contracts_break_nothing_that_is_frozen() -> None:
    check_breaking()


def test_the_baseline_holds_all_contracts() -> None:
    check_baseline()


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        (RESERVATION, "  int32 party_size = 5;\n", "", r'"5" with name "party_size"'),
        (RESERVATION, "int32 party_size = 5;", "string party_size = 5;", r"type"),
        (RESERVATION, "int32 party_size = 5;", "int32 guests = 5;", r'from "party_size" to "guests"'),
        (EVENTS, "repeated VoidInstruction voids = 16;", "VoidInstruction voids = 16;", r"cardinality"),
        (REASON, "REASON_CARD_DECLINED = 30", "REASON_CARD_DECLINED = 99", r'"30"'),
        (
            DEPOSIT_SERVICE,
            "  rpc RetryRefund(RetryRefundRequest) returns (RetryRefundResponse);\n",
            "",
            r'"RetryRefund"',
        ),
        (
            RESERVATION_SERVICE,
            "returns (stream WatchReservationResponse)",
            "returns (WatchReservationResponse)",
            r"streaming",
        ),
    ],
    ids=[
        "field removed",
        "type changed",
        "field renamed",
        "list made single",
        "value renumbered",
        "rpc removed",
        "stream made single",
    ],
)
def test_a_breaking_change_is_refused(sources: Path, name: str, old: str, new: str, complaint: str) -> None:
    check_breaking(sources)
    spoil(sources, name, old, new)
    with pytest.raises(Unfit, match=complaint):
        check_breaking(sources)


def test_an_addition_breaks_nothing_and_is_wanted_in_the_baseline(sources: Path) -> None:
    check_baseline(sources)
    spoil(
        sources,
        RESERVATION,
        "  string note = 18;\n",
        "  string note = 18;\n  // More words.\n  string extra = 19;\n",
    )
    check_breaking(sources)
    with pytest.raises(Unfit, match=r"reservation\.proto.*--freeze"):
        check_baseline(sources)


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        (REASON, "package dinemesh.error.v1;", "package dinemesh.refusal.v1;", "directory"),
        (RESERVATION, "  // Number of guests.\n", "", "party_size.*comment"),
        (RESERVATION, "  FAILURE_CAUSE_CARD_DECLINED", "  CARD_DECLINED", "prefixed"),
        (RESERVATION, "  FAILURE_CAUSE_UNSPECIFIED", "  FAILURE_CAUSE_NONE", "_UNSPECIFIED"),
        (
            DEPOSIT_SERVICE,
            "rpc RetryRefund(RetryRefundRequest) returns (RetryRefundResponse)",
            "rpc RetryRefund(RetryRefundRequest) returns (CreateDepositResponse)",
            "CreateDepositResponse",
        ),
    ],
    ids=["package off its folder", "no comment", "value without prefix", "zero value", "shared response"],
)
def test_a_breach_of_form_is_found_by_the_lint(
    sources: Path, name: str, old: str, new: str, complaint: str
) -> None:
    spoil(sources, name, old, new)
    with pytest.raises(Unfit, match=f"(?is){complaint}"):
        check_lint(sources)


def test_a_crooked_line_is_found(sources: Path) -> None:
    check_form(sources)
    spoil(sources, RESERVATION, "  int32 party_size = 5;", "    int32 party_size  = 5;")
    with pytest.raises(Unfit, match="party_size"):
        check_form(sources)


def test_the_baseline_is_in_the_repository() -> None:
    assert BASELINE.stat().st_size > 10_000
