"""The page, clicked through in a headless browser, as somebody would who has an image and a question."""

import shutil
import socket
import threading
import time

import pytest

import csham
from csham import ops
from csham.app.serve import MAX_UPLOAD, serve
from csham.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# That what is shown is the answer to an image of which the class is not known.
UPLOADED = "/^It says (?!.*which is)/.test(document.querySelector('#network-0 .said').innerText)"
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


def answered(page, side=0):
    """Wait until a network has answered, and return its sentence."""
    sentence = page.locator(f"#network-{side}").get_by_text("It says")
    sentence.wait_for(timeout=60_000)
    return sentence.inner_text()


def settled(page):
    """Wait until nothing is in progress."""
    page.wait_for_function("!document.querySelector('[data-testid=status-tracker]:not(.hide) .progress-text')")


def test_it_opens_with_an_example_that_is_answered(page, address, networks):
    page.get_by_role("heading", name="2 networks, one image").wait_for()
    for side, name in enumerate(("resnet20 + csham (transfer)", "resnet20")):
        page.locator(f"#network-{side}").get_by_role("heading", name=name, exact=True).wait_for()
        assert "which is" in answered(page, side)
    thumbnails = page.locator("#examples button")
    assert thumbnails.count() == 6
    assert page.get_by_role("radio", name="Most to see").is_checked()
    pictures = page.locator("#network-0 .overlay img, #network-1 .overlay img")
    alts = [picture.get_attribute("alt") for picture in pictures.all()]
    assert alts[0].startswith("Spatial weights of layer")
    assert alts[1].startswith("Grad-CAM of")
    assert not page.wrong
    origin = address.removeprefix("http://")
    assert all(url.split("://")[-1].startswith(origin) or url.startswith(("data:", "blob:")) for url in page.asked)


def test_click_through(page, networks, images):
    answered(page)
    path = images / "bee" / "3.png"
    drop(page, path)
    attended, plain = page.locator("#network-0"), page.locator("#network-1")
    page.wait_for_function("!document.querySelector('#network-0 .said').innerText.includes('which is')")
    attended.get_by_text("Spatial weights at").wait_for(timeout=60_000)
    for side, network in ((attended, networks[0]), (plain, networks[1])):
        probabilities = network.probabilities([path])[0]
        answer = network.classes[int(probabilities.argmax())]
        assert (
            side.get_by_text("It says").inner_text().startswith(f"It says {answer} ({float(probabilities.max()):.0%}")
        )
        assert side.locator("dt").first.inner_text() == answer
    assert not page.locator("#examples .selected").count()
    first = attended.locator(".overlay img").get_attribute("src")

    page.get_by_role("radio", name="Grad-CAM").click()
    for side in (attended, plain):
        side.get_by_text("What speaks for").wait_for()
    page.wait_for_function("old => document.querySelector('#network-0 .overlay img').src != old", arg=first)
    page.get_by_role("button", name="Remove Image").click()
    attended.get_by_text("Drop an image, or paste one.").wait_for()
    assert not page.wrong


WRITE = """async () => {
    const canvas = Object.assign(document.createElement('canvas'), {width: 16, height: 16});
    canvas.getContext('2d').fillRect(0, 0, 8, 8);
    const file = await new Promise(then => canvas.toBlob(then));
    await navigator.clipboard.write([new ClipboardItem({'image/png': file})]);
}"""


def test_an_image_can_be_pasted(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert "which is" in answered(page)
    settled(page)
    page.evaluate(WRITE)
    page.get_by_role("button", name="Paste from clipboard").click()
    page.wait_for_function(UPLOADED)
    assert "clipboard" in page.locator("#image img").get_attribute("src")
    assert not page.locator(".toast-body").count()


def test_an_image_that_comes_while_the_first_example_is_answered_stays(page, networks, images):
    begun = threading.Event()

    def slowly(*_):
        begun.set()
        time.sleep(4)

    with ops.use_kernels("reference"), serve(*networks) as fresh:
        with networks[1].network.register_forward_pre_hook(slowly):
            page.goto(fresh)
            page.locator("#examples button").first.wait_for()
            assert begun.wait(30)
            drop(page, images / "cow" / "3.png")
            page.wait_for_function(UPLOADED)
        settled(page)
        page.wait_for_timeout(1000)
        assert page.evaluate(UPLOADED)
        assert page.locator("#image img").get_attribute("src").endswith("3.png")
        assert not page.locator("#examples .selected").count()


def test_by_keyboard_alone(page):
    answered(page)
    settled(page)
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.evaluate("[document.activeElement.ariaLabel, document.activeElement.value]")
        reached.append(next(filter(None, focused), ""))
        if reached[-1].startswith("Example 2: "):
            page.keyboard.press("Enter")
            page.wait_for_function("document.querySelectorAll('#examples button')[1].classList.contains('selected')")
            page.get_by_text(f"it is {reached[-1][11:]}").or_(page.get_by_text("which is right")).first.wait_for()
            settled(page)
        if reached[-1] == "Grad-CAM":
            page.keyboard.press("Space")
            page.locator("#network-0").get_by_text("What speaks for").wait_for()
            break
    assert {"Upload file", "Paste from clipboard", "Example 6: ant"} & set(reached) >= {"Upload file"}
    assert [name for name in reached if name.startswith("Example ")][-1].startswith("Example 6: ")
    assert reached[-1] == "Grad-CAM"


def test_everything_that_can_be_used_has_a_name(page):
    answered(page)
    settled(page)
    tree = page.locator("body").aria_snapshot()
    assert not {"- button", "- link", "- radio", "- textbox"}.intersection(map(str.strip, tree.splitlines())), tree
    assert page.get_by_role("button", name="Example 1: ").is_visible()
    assert page.get_by_role("img", name="Channel weights").is_visible()
    assert page.locator("#show").get_attribute("aria-label") == "Show"
    assert page.locator("#network-0 .block.said").first.get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("width", [320, 400, 800, 1200, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_page(page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    answered(page)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("""() => [...document.querySelectorAll('.prose, dt, button, .block')].filter(one => {
        const box = one.getBoundingClientRect();
        const cut = one.matches('.prose') && one.scrollWidth > one.clientWidth + 1;
        return cut || box.width && box.right > innerWidth + 1;
    }).map(one => one.className + ': ' + one.innerText.slice(0, 60))""")
    assert not wide


def test_what_cannot_be_read_is_said_and_the_page_goes_on(page, images, tmp_path):
    bad, large = tmp_path / "bad.png", tmp_path / "large.png"
    shutil.copy(images / "bee" / "3.png", bad)
    bad.write_bytes(bad.read_bytes()[:200])
    answered(page)
    drop(page, bad)
    page.get_by_text("bad.png").first.wait_for()
    page.get_by_text("truncated").first.wait_for()
    large.write_bytes(bytes(MAX_UPLOAD + 1))
    page.reload()
    answered(page)
    drop(page, large)
    page.get_by_text("exceed").first.wait_for()
    page.reload()
    answered(page)
    drop(page, images / "ant" / "3.png")
    page.wait_for_function(UPLOADED)


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
