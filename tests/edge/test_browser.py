"""The example page in a real browser, over the real edge: it books, watches and cancels, and it is told the
truth about what breaks.

The page comes from an origin of its own, as a web application's does; all its calls cross origins.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from dinemesh.restaurant.v1.restaurant_pb2 import BOOKING_STATE_RECEIVED as RECEIVED
from tests.mesh.people import (
    CONFIRMED,
    FAILED,
    MANUAL,
    PATIENCE,
    City,
    Place,
    cents,
    kept,
    policy,
    until,
)
from tests.support.edge import RunningEdge
from tests.support.mesh import ROOT, Part, RunningMesh, state_of

EXAMPLE = ROOT / "examples" / "browser"
T = TypeVar("T")


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port at which the example's files are served."""
    handler = functools.partial(QuietFiles, directory=str(EXAMPLE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


class Page:
    """The page as a person sees it, and the browser's own record of what it sent."""

    def __init__(self, browser: webdriver.Chrome, origin: str, edge: RunningEdge) -> None:
        self.browser = browser
        self.origin = origin
        self._edge = edge
        self._network: list[dict[str, Any]] = []

    def open(self, token: str) -> None:
        """Opens the page with the edge's address and a token in the fragment."""
        fragment = urllib.parse.urlencode({"edge": self._edge.url, "token": token})
        self.browser.get(f"{self.origin}/#{fragment}")

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def search(self, place: Place, slot: int, party: int) -> None:
        self.until(lambda: self.find("#search").is_displayed())
        Select(self.find("#restaurant")).select_by_value(place.id)
        date = place.slots[slot].astimezone(place.zone).date().isoformat()
        self.browser.execute_script("arguments[0].value = arguments[1]", self.find("#date"), date)
        self.browser.execute_script("arguments[0].value = arguments[1]", self.find("#party"), party)
        self.find("#search button").click()
        self.until(lambda: self.find("#book").is_displayed())

    def book(self, place: Place, slot: int = 0, party: int = 2, card: str = "tok_visa") -> None:
        """Fills in the forms as far as the button "Book", and presses it."""
        self.search(place, slot, party)
        self.choose(place, slot, card)

    def choose(self, place: Place, slot: int, card: str = "tok_visa") -> None:
        """Books one of the times that are shown."""
        time_of_day = place.slots[slot].astimezone(place.zone).strftime("%H:%M")
        label = next(
            one
            for one in self.browser.find_elements(By.CSS_SELECTOR, "#slots label")
            if one.text == time_of_day
        )
        label.click()
        Select(self.find("#card")).select_by_value(card)
        self.find("#book-button").click()

    def _news(self) -> list[tuple[str, str]]:
        """The lines below "Live", kind and text without the time, as they stand in one moment."""
        found: list[list[str]] = self.browser.execute_script(
            "const lines = [...document.querySelectorAll('#update li')];"
            "return lines.map((line) => [line.dataset.kind, line.lastChild.data])"
        )
        return [(kind, text) for kind, text in found]

    def news(self) -> list[str]:
        """The kinds of these lines, in order."""
        return [kind for kind, _ in self._news()]

    def lines(self, kind: str) -> list[str]:
        """What those of one kind say."""
        return [text for one, text in self._news() if one == kind]

    def until(self, look: Callable[[], T], seconds: float = PATIENCE) -> T:
        end = time.monotonic() + seconds
        while not (seen := look()):
            shown = self.text("body")
            assert time.monotonic() < end, f"not within {seconds} s; the page shows:\n{shown}"
            time.sleep(0.02)
        return seen

    def network(self, method: str) -> list[dict[str, Any]]:
        """What the browser recorded of one kind of event (of Chrome's DevTools protocol) so far."""
        for entry in self._log("performance"):
            self._network.append(json.loads(entry["message"])["message"])
        return [one["params"] for one in self._network if one["method"] == method]

    def sent(self, path: str) -> list[dict[str, Any]]:
        """The requests to the edge whose path ends so, without preflights."""
        return [
            one
            for one in self.network("Network.requestWillBeSent")
            if urllib.parse.urlsplit(one["request"]["url"]).path.endswith(path)
            and one["request"]["url"].startswith(self._edge.url)
            and one["request"]["method"] != "OPTIONS"
        ]

    def errors(self) -> list[str]:
        """What the console complained of."""
        return [one["message"] for one in self._log("browser") if one["level"] == "SEVERE"]

    def _log(self, name: str) -> list[dict[str, Any]]:
        """What was logged since the last time."""
        new: list[dict[str, Any]] = self.browser.get_log(name)  # type: ignore[no-untyped-call]
        return new


@pytest.fixture
def page(browser: webdriver.Chrome, site: int, edge: RunningEdge) -> Page:
    return Page(browser, f"http://127.0.0.1:{site}", edge)


@pytest.fixture
def name() -> str:
    """A customer whom nobody else's test knows."""
    return f"browser-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def breakable(mesh: RunningMesh, edge: RunningEdge) -> Iterator[RunningMesh]:
    """The mesh; what a test took away of it is there again afterwards."""
    yield mesh
    for part in mesh.parts.values():
        if not part.running:
            part.start()
    edge.wait_until_healthy()


async def test_terms_that_change_before_the_click_are_shown_before_they_count(
    page: Page, city: City, mesh: RunningMesh, name: str
) -> None:
    place = await city.place()
    page.open(mesh.token(name, "customer"))
    page.search(place, slot=0, party=2)
    assert page.text("#slots-title") == "Times, deposit €20.00"
    await place.change_policy(policy(per_person=5000, free_cancel_seconds=30 * 86_400))
    await until(place.terms_of_slots, lambda heard: heard == place.policy_etag)
    page.choose(place, slot=0)
    page.until(lambda: page.find("#notice").get_attribute("data-reason") == "POLICY_CHANGED")
    assert "now 10000.00 EUR" in page.text("#notice-text")
    assert not page.find("#book").is_displayed()
    assert await city.customer(name).reservations() == []
    page.search(place, slot=0, party=2)
    assert page.text("#slots-title") == "Times, deposit €10,000.00"
    assert "Deposit €5,000.00 a person, free to cancel until 720 h before" in page.text("#terms")
    page.choose(place, slot=0)
    page.until(lambda: page.text("#notice-title") == "Booked")


async def test_a_table_is_booked_watched_and_cancelled_in_the_browser(
    page: Page, city: City, mesh: RunningMesh, edge: RunningEdge, name: str, tmp_path: Path
) -> None:
    place = await city.place(MANUAL)
    page.open(mesh.token(name, "customer"))
    assert "token" not in page.browser.current_url
    page.book(place, party=2)
    page.until(lambda: page.text("#notice-title") == "Booked")
    page.until(lambda: page.lines("reservation")[-1:] == ["Pending acceptance"])
    assert page.text("#connection") == "live"
    assert page.text("#deposit") == "€20.00 paid, €20.00 held"

    # Live: what the restaurant says arrives while the one stream stays open, and so do heartbeats.
    customer = city.customer(name)
    (reservation,) = await customer.reservations()
    booking = await place.sees(reservation, RECEIVED)
    await place.accept(booking)
    page.until(lambda: page.lines("reservation")[-1] == "Confirmed")
    page.until(lambda: "heartbeat" in (page.find("#connection").get_attribute("title") or ""))
    (watch,) = page.sent(":watch")
    arrived = [one for one in page.network("Network.dataReceived") if one["requestId"] == watch["requestId"]]
    assert len(arrived) >= 3
    ended = [one["requestId"] for one in page.network("Network.loadingFinished")]
    assert watch["requestId"] not in ended
    page.browser.save_screenshot(str(tmp_path / "confirmed.png"))

    page.find("#cancel").click()
    page.until(lambda: page.text("#notice-title") == "Cancelled")
    assert page.text("#notice-text") == "€20.00 go back to your card."
    page.until(lambda: page.news()[-1] == "finished")
    assert page.lines("reservation")[-1] == "Cancelled"
    assert len(page.sent(":watch")) == 1
    assert not page.find("#cancel").is_enabled()
    page.browser.save_screenshot(str(tmp_path / "cancelled.png"))

    # The correlation id on the page is the one in the edge's log.
    logged = edge.logged(correlation_id=page.text("#correlation"))
    assert logged["path"] == f"/v1/reservations/{reservation.reservation_id}:cancel"
    # Nothing but the page's own files and the edge was asked.
    asked = {
        urllib.parse.urlsplit(one["request"]["url"]) for one in page.network("Network.requestWillBeSent")
    }
    hosts = {one.netloc for one in asked if one.scheme in ("http", "https", "ws", "wss")}
    assert hosts == {urllib.parse.urlsplit(page.origin).netloc, edge.address}
    assert page.errors() == []


async def test_a_declined_card_is_shown_by_its_reason(
    page: Page, city: City, mesh: RunningMesh, name: str
) -> None:
    place = await city.place()
    page.open(mesh.token(name, "customer"))
    page.book(place, card="tok_chargeDeclined")
    page.until(lambda: page.find("#notice").get_attribute("data-reason") == "CARD_DECLINED")
    assert page.text("#notice-title") == "Card declined"
    assert page.text("#correlation")
    assert len(page.sent("/v1/reservations")) == 1  # a final refusal is not repeated


def test_a_wrong_token_is_shown_by_its_reason(page: Page) -> None:
    page.open("not.a.token")
    page.until(lambda: page.find("#notice").get_attribute("data-reason") == "TOKEN_INVALID")
    assert page.text("#notice-title") == "Token invalid"


async def test_a_page_that_is_told_to_come_again_does_so_and_books_once(
    page: Page, city: City, breakable: RunningMesh, name: str
) -> None:
    place = await city.place()
    token = breakable.token(name, "customer")
    page.open(token)
    page.search(place, slot=0, party=2)
    breakable["deposit"].stop()
    assert not breakable["deposit"].running

    page.book(place)
    page.until(lambda: page.find("#notice").get_attribute("data-reason") == "TRY_AGAIN_LATER")
    assert re.search(r"Trying again in \d+\.\d s, with the same request id", page.text("#notice-text"))
    tried = page.sent("/v1/reservations")
    answers = {one["requestId"]: one["response"] for one in page.network("Network.responseReceived")}
    assert answers[tried[0]["requestId"]]["status"] == 429
    # The page itself can read the header, though the answer comes from another origin.
    told = page.browser.execute_async_script(
        """const [url, token, wish, done] = arguments;
        fetch(url, {
            method: "POST", body: JSON.stringify(wish),
            headers: {authorization: `Bearer ${token}`, "content-type": "application/json"},
        }).then(
            (answer) => done([answer.status, answer.headers.get("retry-after")]),
            (error) => done(String(error)),
        );
        """,
        f"{page._edge.url}/v1/reservations",
        token,
        json.loads(tried[0]["request"]["postData"]),
    )
    assert told[0] == 429
    assert int(told[1]) >= 1

    breakable["deposit"].start()
    page.until(lambda: page.text("#notice-title") == "Booked")
    page.until(lambda: page.lines("reservation")[-1:] == ["Confirmed"])
    sent = [json.loads(one["request"]["postData"])["requestId"] for one in page.sent("/v1/reservations")]
    assert len(sent) >= 3
    assert len(set(sent)) == 1

    customer = city.customer(name)
    standing = [one for one in await customer.reservations() if one.state != FAILED]
    assert [one.state for one in standing] == [CONFIRMED]
    assert [one.reservation_id for one in await place.bookings()] == [standing[0].reservation_id]
    deposits = {one.deposit_id for one in await customer.deposits()}
    charges = [one for key, one in (await city.provider.charges()).items() if key in deposits]
    assert sum(kept(one) for one in charges) == cents(place.price(2))


def gone(part: Part, pid: int) -> bool:
    return not part.running and state_of(pid) == ""


async def test_a_page_tells_a_stopping_service_from_a_killed_one_and_connects_again(
    page: Page, city: City, breakable: RunningMesh, edge: RunningEdge, name: str, tmp_path: Path
) -> None:
    place = await city.place(MANUAL)
    page.open(breakable.token(name, "customer"))
    page.book(place)
    page.until(lambda: page.news()[-1:] == ["reservation"])
    reservation = breakable["reservation"]

    def broke_off() -> list[str]:
        return [one for one in page.lines("broken") if one.startswith("The stream broke off without a last")]

    first = reservation.pid
    reservation.stop()
    assert gone(reservation, first)
    page.until(lambda: page.lines("stopping"))
    assert page.lines("stopping")[0].startswith("The server said that it ends this stream (SERVER_STOPPING).")
    page.until(lambda: page.text("#connection") == "connection lost")  # nobody is there to connect to
    reservation.start()
    page.until(lambda: page.news()[-1] == "reservation" and page.text("#connection") == "live")
    assert page.news().count("stopping") == 1
    assert broke_off() == []

    second = reservation.pid
    assert second != first
    reservation.kill()
    assert gone(reservation, second)
    page.until(broke_off)
    page.browser.save_screenshot(str(tmp_path / "broken.png"))
    reservation.start()
    page.until(lambda: page.news()[-1] == "reservation" and page.text("#connection") == "live")
    assert page.news().count("stopping") == 1
    assert reservation.pid != second

    # The new stream is as live as the first.
    (booked,) = await city.customer(name).reservations()
    await place.accept(await place.sees(booked, RECEIVED))
    page.until(lambda: page.lines("reservation")[-1] == "Confirmed")
    page.browser.save_screenshot(str(tmp_path / "connected-again.png"))


async def test_a_page_of_an_origin_that_is_not_allowed_gets_nothing(
    browser: webdriver.Chrome, site: int, edge: RunningEdge, mesh: RunningMesh, name: str
) -> None:
    # The same files from the same server, under a name that the edge does not know.
    stranger = Page(browser, f"http://127.0.0.1.elsewhere.localhost:{site}", edge)
    stranger.open(mesh.token(name, "customer"))
    stranger.until(lambda: stranger.text("#notice-title") == "No answer")
    assert not stranger.find("#search").is_displayed()
    assert any("blocked by CORS policy" in one for one in stranger.errors())


def test_a_stream_is_read_line_by_line_in_whatever_pieces_it_comes(
    browser: webdriver.Chrome, site: int
) -> None:
    browser.get(f"http://127.0.0.1:{site}/")
    browser.set_script_timeout(10)
    told = browser.execute_async_script(
        """const [bytes, done] = arguments;
        let connections = 0;
        window.fetch = async () => {
            connections += 1;
            const pieces = connections === 1
                ? bytes.map((byte) => [byte])
                : [[...new TextEncoder().encode('{"end": {"reason": "END_REASON_FINISHED"}}\\n')]];
            return new Response(new ReadableStream({
                start(stream) {
                    for (const piece of pieces) stream.enqueue(new Uint8Array(piece));
                    stream.close();
                },
            }));
        };
        (async () => {
            const { Dinemesh } = await import("/client.js");
            const told = [];
            for await (const news of new Dinemesh("http://edge").watch("x")) told.push(news);
            return told;
        })().then(done, (error) => done(String(error)));
        """,
        list('{"reservation": {"note": "für zwei"}}\n\n{"heartbeat": {}}\n{"end": {"reason": "END_'.encode()),
    )
    assert [one["kind"] for one in told] == ["open", "reservation", "heartbeat", "broken", "open", "finished"]
    assert told[1]["reservation"]["note"] == "für zwei"
