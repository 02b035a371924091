"""The status page in a browser."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from trollmoves.status import model
from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed, client_section
from trollmoves.tests.helpers.recording import HOST
from trollmoves.tests.helpers.waiting import until
from trollmoves.tests.servers.process import answers

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
TOKEN = "a token for tests"
UPDATE = 2.0  # s until a change is visible
SMOOTH = 0.2  # s that an update of the largest site may block the browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="missing: no chromium (Debian: chromium)"),
]


class Site:
    """A server, a client with a second section for a destination that refuses connections, and their page."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.pair = ServerClientPair(testbed)
        self.closed = f"{HOST}:{testbed.port()}"
        section = client_section(self.pair.publish_port, f"ftp://{self.closed}/x", testbed.port())
        self.pair.client.config.write_text(f"{self.pair.client.config.read_text()}\n[blocked]\n{_options(section)}")
        self.pair.start()
        self.pair.feeder.feed(5)
        self.pair.wait_until_done()
        self.port = testbed.port()
        configs = [self.pair.server.config, self.pair.client.config]
        serve(testbed, self.port, *(word for path in configs for word in ("-c", str(path))))

    @property
    def url(self) -> str:
        """The URL of the page."""
        return f"http://{HOST}:{self.port}/"


def _options(section: dict[str, object]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in section.items())


def serve(testbed: Testbed, port: int, *arguments: str) -> None:
    """Start the page on a port, with a token."""
    command = [sys.executable, "-m", "trollmoves", "web", "-p", str(port), *arguments]
    environment = testbed.environment | {"TROLLMOVES_WEB_TOKEN": TOKEN}
    page = testbed.process(f"web-{port}", command, testbed.root, lambda _: answers(port), environment)
    page.start()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with its page."""
    with Testbed(tmp_path_factory.mktemp("web")) as testbed:
        yield Site(testbed)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """The page, loaded; an error or a blocked resource in the browser fails the test."""
    with closing(browser.new_context(viewport={"width": 1280, "height": 900})) as context:
        opened = context.new_page()
        complaints: list[str] = []
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        opened.goto(site.url)
        opened.wait_for_selector("#lanes tr")
        yield opened
        assert complaints == []


def lane(page: Any, section: str, to: str = "") -> Any:
    """Return the row of a section."""
    return page.locator("#lanes tr", has=page.locator(f"td:text-is('{section}')"), has_text=to).first


def test_states(site: Site, page: Any) -> None:
    """Each lane has its state; a destination that refuses connections is a problem with its cause."""
    playwright.expect(page.locator("#verdict")).to_contain_text("2 daemons")
    playwright.expect(lane(page, "hrit", "client.ini")).to_contain_text("ok")
    problem = page.locator("#problem-list li", has_text=f"ftp://{site.closed}")
    playwright.expect(problem.first).to_contain_text("Connection refused", timeout=60_000)
    playwright.expect(page.locator("#connection")).to_have_text("live")


def test_search(site: Site, page: Any) -> None:
    """The steps of a file are shown from its appearance to the receipt."""
    name = next(iter(site.pair.feeder.fed))
    page.fill("#file", name)
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#steps tr").first).to_be_visible()
    steps = page.locator("#steps").inner_text()
    for event in ("announced", "requested", "delivered", "receipt published"):
        assert event in steps
    page.fill("#file", "no such file")
    page.click("text=Show history")
    playwright.expect(page.locator("#history-text")).to_contain_text("not in the journals")


def test_live_update(site: Site, page: Any) -> None:
    """A new file is visible within seconds."""
    (name,) = site.pair.feeder.feed()
    site.pair.received.wait_for_receipts([name])
    began = time.monotonic()
    playwright.expect(lane(page, "hrit", "client.ini")).to_contain_text(name, timeout=30_000)
    seconds = time.monotonic() - began
    assert seconds < 5 * UPDATE, f"{seconds:.1f} s; {UPDATE} s on an idle machine"


def test_actions_need_the_token(site: Site, page: Any) -> None:
    """Without the token the page has no buttons and orders are rejected; with it a destination can be paused."""
    assert page.locator("#flows button").count() == 0
    order = {"action": "pause", "name": "hrit", "journal": "x"}
    assert post(site, order, "") == 403
    assert post(site, order, "another token") == 403
    assert post(site, order, TOKEN) == 400  # no daemon has this journal
    assert post(site, {"timeout": -1, "journal": str(next(site.testbed.root.rglob("client-*.journal")))}, TOKEN) == 400
    page.fill("#token", "wrong")
    page.click("text=Unlock")
    playwright.expect(page.locator("#rights")).to_have_text("wrong token")
    page.fill("#token", TOKEN)
    page.click("text=Unlock")
    row = lane(page, "hrit", "client.ini")
    row.get_by_role("button", name="Pause").click()
    playwright.expect(row).to_contain_text("paused", timeout=20_000)
    names = site.pair.feeder.feed(2)
    site.pair.client.wait_for_line("pause")
    row.get_by_role("button", name="Resume").click()
    site.pair.received.wait_for_receipts(names)
    playwright.expect(row).to_contain_text("ok", timeout=20_000)


def post(site: Site, order: dict[str, Any], token: str) -> int:
    """Post an order; return the HTTP status."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{site.url}api/orders", json.dumps(order).encode(), headers)
    try:
        return int(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_other_host_names_are_rejected(site: Site) -> None:
    """A page of another site cannot read the state by a name that resolves to this host."""
    request = urllib.request.Request(f"{site.url}api/state", headers={"Host": "attacker.example.org"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=20)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_accessibility(site: Site, browser: Any, scheme: str, width: int) -> None:
    """The accessibility checker finds nothing, on a desk and on a phone, in both colour schemes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "bypass_csp": True}
    with closing(browser.new_context(**options)) as context:
        opened = context.new_page()
        opened.goto(site.url)
        opened.wait_for_selector("#problem-list li")
        violations = axe.run(opened).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in violations] == []
        wide = opened.evaluate("document.documentElement.scrollWidth")
        assert wide <= width


def test_unix_socket(site: Site) -> None:
    """On a Unix socket its owner may give orders without a token; other users cannot connect."""
    path = site.testbed.root / "web.sock"
    command = [sys.executable, "-m", "trollmoves", "web", "--socket", str(path), "-c", str(site.pair.server.config)]
    site.testbed.process("web-socket", command, Path("none"), lambda _: path.exists()).start()
    assert path.stat().st_mode & 0o077 == 0
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(20)
        until(lambda: connection.connect_ex(str(path)) == 0, 20, "it listens")
        connection.sendall(b"GET /api/rights HTTP/1.0\r\nHost: x\r\n\r\n")
        assert b'{"orders":true}' in b"".join(iter(lambda: connection.recv(4096), b""))


class LargeSite(http.server.BaseHTTPRequestHandler):
    """The page of another host, with 200 sections and 50 destinations; the numbers change with each request."""

    requests = 0

    def do_GET(self) -> None:
        """Return the state."""
        type(self).requests += 1
        large: object = [] if "state" not in self.path else {"daemons": [daemon_of_size(type(self).requests)]}
        body = json.dumps(large).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def daemon_of_size(number: int) -> dict[str, Any]:
    """Return a daemon with 200 sections, each with one of 50 destinations."""
    chains = [
        model.Chain(
            f"section {index}",
            model.OK,
            running=True,
            destinations=[
                model.Destination(
                    f"sftp://host{index % 50}",
                    f"sftp://host{index % 50}",
                    "destination",
                    model.BUSY,
                    waiting=number + index,
                    last_file=f"file {number}",
                    last_time=time.time(),
                    total_files=10 * number,
                )
            ],
        )
        for index in range(200)
    ]
    return model.Daemon("large.ini", "server", "", "/large", model.BUSY, running=True, chains=chains).as_dict()


def test_large_site(site: Site, browser: Any) -> None:
    """A page with 200 sections and 50 destinations of another host updates without blocking the browser."""
    server = http.server.ThreadingHTTPServer((HOST, 0), LargeSite)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = site.testbed.port()
    serve(site.testbed, port, "-d", f"http://{HOST}:{server.server_address[1]}", "-c", str(site.pair.server.config))
    with closing(browser.new_context()) as context:
        opened = context.new_page()
        opened.goto(f"http://{HOST}:{port}/")
        opened.wait_for_selector("#lanes tr:nth-child(200)")
        opened.evaluate(
            "window.longest = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries())"
            " window.longest = Math.max(window.longest, entry.duration); }).observe({ type: 'longtask' })"
        )
        before = LargeSite.requests
        until(lambda: LargeSite.requests > before + 20, 60, "ten updates")
        opened.wait_for_timeout(100)
        longest = opened.evaluate("window.longest") / 1000
    server.shutdown()
    assert longest < 5 * SMOOTH, f"{longest:.2f} s; {SMOOTH} s on an idle machine"
