"""The page, clicked through in a headless browser, as somebody would who has an image and a question."""

import shutil
import socket

import pytest

import csham
from csham import ops
from csham.app import serve as serving
from csham.app.serve import MAX_UPLOAD, serve
from csham.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def networks(attended, finished):
    return csham.load(attended), csham.load(finished)


@pytest.fixture(scope="module")
def address(networks):
    with ops.use_kernels("reference"), serve(*networks) as url:
        yield url


@pytest.fixture
def page(address):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(address)
        yield page
        browser.close()


def drop(page, path):
    page.set_input_files("#image input[type=file]", path)


def test_click_through(page, address, networks, images):
    page.get_by_role("heading", name="resnet20 + csham (transfer) and resnet20").wait_for()
    path = images / "bee" / "3.png"
    drop(page, path)
    attended, plain = page.locator("#network-0"), page.locator("#network-1")
    attended.get_by_text("Spatial weights at").wait_for(timeout=60_000)
    plain.get_by_text("no attention attached").wait_for()
    for side, network in ((attended, networks[0]), (plain, networks[1])):
        probabilities = network.probabilities([path])[0]
        answer = network.classes[int(probabilities.argmax())]
        assert side.locator("h2").inner_text() == answer
        assert f"{float(probabilities.max()):.0%}" in side.inner_text()
    first = attended.locator(".overlay img").get_attribute("src")

    page.get_by_role("radio", name="Grad-CAM").click()
    for side in (attended, plain):
        side.get_by_text("What speaks for").wait_for()
    assert attended.locator(".overlay img").get_attribute("src") != first
    assert not page.wrong
    origin = address.removeprefix("http://")
    assert all(url.split("://")[-1].startswith(origin) or url.startswith(("data:", "blob:")) for url in page.asked)


def test_what_cannot_be_read_is_said_and_the_page_goes_on(page, images, tmp_path):
    bad, large = tmp_path / "bad.png", tmp_path / "large.png"
    shutil.copy(images / "bee" / "3.png", bad)
    bad.write_bytes(bad.read_bytes()[:200])
    drop(page, bad)
    page.get_by_text("bad.png").first.wait_for()
    page.get_by_text("truncated").first.wait_for()
    large.write_bytes(bytes(MAX_UPLOAD + 1))
    page.reload()
    drop(page, large)
    page.get_by_text("exceed").first.wait_for()
    page.reload()
    drop(page, images / "ant" / "3.png")
    page.locator("#network-0").get_by_text("Spatial weights at").wait_for()


def own_address():
    """This machine's address in its network, if it is in one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return probe.getsockname()[0]


def test_only_this_machine_reaches_it(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    own = own_address()
    if own is None or own.startswith("127."):
        pytest.skip("this machine is in no network")
    with pytest.raises(OSError):
        socket.create_connection((own, port), timeout=5)


def test_a_port_that_is_taken_is_named(networks, address):
    with pytest.raises(UserError, match=r"port \d+ is taken"), serve(networks[0], port=int(address[17:].strip("/"))):
        pass


def test_without_gradio_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"csham\[app\]"):
        serving.check_packages()
