"""The documents of the API: served by the edge, for everybody, and nothing of them comes from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from local_mesh.envoy.edge import documents
from protos.openapi.__main__ import TARGET
from tests.support.edge import RunningEdge
from tests.support.mesh import RunningMesh

SCRIPT = "text/javascript; charset=utf-8"
SERVED = {
    "/": ("start_page_file", "text/html; charset=utf-8"),
    "/openapi.json": ("openapi_file", "application/json"),
    "/docs": ("reference_page_file", "text/html; charset=utf-8"),
    "/docs/reference.js": ("reference_script_file", SCRIPT),
    "/docs/swagger-ui-bundle.js": ("swagger_ui_script_file", SCRIPT),
    "/docs/swagger-ui.css": ("swagger_ui_style_file", "text/css; charset=utf-8"),
}
PATIENCE = 20
"""Seconds for a browser to show the page, which takes one or two."""


class References(HTMLParser):
    """What a page asks the browser to load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.inline_scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in {"script", "link", "img", "iframe", "source"}:
            self.found.append(named.get("src") or named.get("href") or "")
        if tag == "a":
            self.links.append(named["href"] or "")
        if tag == "script" and not named.get("src"):
            self.inline_scripts += 1


@pytest.mark.parametrize("path", SERVED)
def test_a_document_is_the_file_byte_for_byte_and_needs_no_token(edge: RunningEdge, path: str) -> None:
    name, content_type = SERVED[path]
    file = Path(documents()[name])
    answer = httpx.get(f"{edge.url}{path}")
    assert answer.status_code == 200
    assert answer.headers.get_list("content-type") == [content_type]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == file.read_bytes()


async def test_the_served_document_is_the_committed_one(http: httpx.AsyncClient) -> None:
    assert (await http.get("/openapi.json")).text == TARGET.read_text()


@pytest.mark.parametrize("path", SERVED)
async def test_a_document_is_shown_to_whoever_shows_a_token_too(
    http: httpx.AsyncClient, mesh: RunningMesh, path: str
) -> None:
    token = mesh.token("alice", "customer")
    assert (await http.get(path, headers={"authorization": f"Bearer {token}"})).status_code == 200


def test_the_first_page_leads_to_what_there_is(edge: RunningEdge) -> None:
    page = References()
    page.feed(httpx.get(edge.url).text)
    assert page.inline_scripts == 0
    assert [one for one in page.found if not one.startswith("data:")] == []
    assert {"/docs", "/openapi.json", "/healthz", "/v1/restaurants"} <= set(page.links)
    for link in page.links:
        assert httpx.get(urljoin(edge.url, link), timeout=15).status_code == 200, link


async def test_a_document_can_only_be_read(http: httpx.AsyncClient) -> None:
    head = await http.head("/openapi.json")
    assert (head.status_code, head.content) == (200, b"")
    for verb in ("POST", "PUT", "DELETE", "PATCH"):
        refused = await http.request(verb, "/openapi.json", json={})
        assert refused.status_code in {404, 405}, verb


async def test_no_other_file_can_be_read(http: httpx.AsyncClient) -> None:
    for path in (
        "/docs/reference.html",
        "/docs/../envoy/edge.yaml",
        "/docs/%2e%2e/jwks.json",
        "/docs/LICENSE",
        "/docsx",
    ):
        assert (await http.get(path)).status_code in {400, 404}, path


async def test_the_address_with_a_slash_leads_to_the_page(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs/", follow_redirects=True)
    assert answer.status_code == 200
    assert answer.url.path == "/docs"
    assert urlsplit(str(answer.url)).netloc == urlsplit(str(http.base_url)).netloc


async def test_the_page_asks_for_nothing_from_elsewhere_and_runs_no_script_of_its_own(
    http: httpx.AsyncClient,
) -> None:
    page = await http.get("/docs")
    wanted = References()
    wanted.feed(page.text)
    assert wanted.inline_scripts == 0
    loaded = [one for one in wanted.found if not one.startswith("data:")]
    assert len(loaded) == 3
    for one in loaded:
        assert urlsplit(one).netloc == ""
        assert (await http.get(urljoin("/docs", one))).status_code == 200
    ours = (await http.get("/docs/reference.js")).text
    assert re.findall(r"https?:|//\w", ours) == []
    style = (await http.get("/docs/swagger-ui.css")).text
    assert [one for one in re.findall(r"url\(\s*[\"']?(\w+)", style) if one != "data"] == []
    assert "@import" not in style


async def test_the_policy_of_the_page_lets_nothing_from_elsewhere_in(http: httpx.AsyncClient) -> None:
    headers = (await http.get("/docs")).headers
    policy = dict(one.strip().split(" ", 1) for one in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert {word for sources in policy.values() for word in sources.split()} == {"'none'", "'self'", "data:"}
    assert [name for name, sources in policy.items() if "data:" in sources] == ["img-src"]
    assert headers["referrer-policy"] == "no-referrer"


def test_a_browser_shows_every_operation_and_asks_nobody_else(browser: WebDriver, edge: RunningEdge) -> None:
    browser.get(f"{edge.url}/docs")
    document = json.loads(TARGET.read_text())
    names = {one["operationId"] for verbs in document["paths"].values() for one in verbs.values()}
    wait = WebDriverWait(browser, PATIENCE)
    wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, ".opblock")) == len(names))
    shown = {one.get_attribute("id") for one in browser.find_elements(By.CSS_SELECTOR, ".opblock")}
    assert {str(one).rpartition("-")[2] for one in shown} == names
    assert browser.find_element(By.CSS_SELECTOR, ".info .title").text.startswith("Dinemesh")

    block = browser.find_element(By.ID, "operations-ReservationService-CreateReservation")
    block.find_element(By.CSS_SELECTOR, ".opblock-summary-control").click()
    wait.until(lambda _: "tok_visa" in block.text)
    wait.until(lambda _: "SLOT_UNAVAILABLE" in block.text)

    asked = requests(browser)
    assert {urlsplit(one).netloc for one in asked} == {edge.address}
    assert {urlsplit(one).path for one in asked} >= set(SERVED) - {"/"}
    assert [one for one in log(browser, "browser") if one["level"] == "SEVERE"] == []


def test_the_policy_holds_in_a_browser(browser: WebDriver, edge: RunningEdge) -> None:
    """Proves that the page could not have asked somebody else, and that the test above would see it."""
    browser.get(f"{edge.url}/docs")
    outcome = browser.execute_async_script(
        "const done = arguments[0];"
        "fetch('http://127.0.0.1:9/').then(() => done('sent'), () => done('refused'));"
    )
    assert outcome == "refused"
    assert any("Content Security Policy" in one["message"] for one in log(browser, "browser"))


def requests(browser: WebDriver) -> list[str]:
    """Every address that was asked for over a network; the browser's own new tab (chrome:) is not."""
    found: list[str] = []
    for line in log(browser, "performance"):
        said: dict[str, Any] = json.loads(line["message"])["message"]
        if said["method"] == "Network.requestWillBeSent":
            url = said["params"]["request"]["url"]
            if urlsplit(url).scheme not in {"chrome", "data", "blob"}:
                found.append(url)
    return found


def log(browser: WebDriver, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = browser.get_log(kind)  # type: ignore[no-untyped-call]
    return found
