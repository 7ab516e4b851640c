"""The page in a real browser: silent, sortable by keyboard, readable on a phone and in the dark."""

import re
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# Text, what is behind it, and how it contrasts: WCAG's formula.
CONTRASTS = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const unseen = ["SCRIPT", "STYLE", "NOSCRIPT", "title", "desc", "style"].includes(element.tagName);
    if (unseen || !walker.currentNode.textContent.trim()) continue;
    const style = getComputedStyle(element);
    const inPicture = element.closest("svg");
    const text = parse(inPicture ? style.fill : style.color);
    const [light, dark] = [luminance(text), luminance(behind(element))].sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), element.tagName, walker.currentNode.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def open_page(browser, report):
    """Function that opens the page; what it complains of or asks for is in ``page.noise``."""

    def open_at(width=1280, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.noise = []
        page.on("console", lambda message: page.noise.append(message.text))
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("request", lambda request: page.noise.append(request.url))
        page.on("dialog", lambda dialog: (page.noise.append(dialog.message), dialog.dismiss()))
        page.goto(report.page.as_uri())
        return page

    return open_at


@pytest.fixture(scope="module")
def desktop(open_page):
    return open_page()


def column(page, table, place):
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.map(row => row.cells[{place}].textContent.trim())"
    )


def test_it_is_silent_and_asks_for_nothing(desktop, report):
    assert desktop.noise == [report.page.as_uri()]


def test_sorting_by_keyboard(desktop, report):
    differences = {one.label: one.mean for one in report.results.comparisons}
    head = desktop.locator("#verdict-table thead th").nth(2)
    head.locator("button").focus()
    assert desktop.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    desktop.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(desktop, "verdict-table", 0) == sorted(differences, key=lambda label: -differences[label])
    desktop.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(desktop, "verdict-table", 0) == sorted(differences, key=differences.get)
    name = desktop.locator("#verdict-table thead th").first
    name.locator("button").click()
    assert (name.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("ascending", None)
    assert column(desktop, "verdict-table", 0) == sorted(differences, key=str.lower)


def test_missing_numbers_are_last_in_both_directions(desktop):
    button = desktop.locator("#run-table thead th").nth(3).locator("button")
    for _ in range(2):
        button.click()
        assert column(desktop, "run-table", 3)[-2:] == [DASH, DASH]


def test_the_class_table_follows_the_choice(desktop, report):
    from csham.study.results import per_class_difference

    labels = [one.label for one in report.results.comparisons]
    for label in (labels[0], labels[-1]):
        desktop.select_option("#per-class-network", label=label)
        assert label in desktop.inner_text("#per-class-caption")
        expected = {one.name: f"{one.mean:+.1f}" for one in per_class_difference(report.results, label)}
        shown = dict(zip(column(desktop, "per-class-table", 0), column(desktop, "per-class-table", 3), strict=True))
        assert {name.strip(): float(value) for name, value in expected.items()} == {
            name: float(value.replace(MINUS, "-")) for name, value in shown.items()
        }
        values = [float(value.replace(MINUS, "-")) for value in column(desktop, "per-class-table", 3)]
        assert values == sorted(values, reverse=True)
    assert desktop.locator("#per-class-table .bar rect").count() == 30


def test_the_skip_link_is_first_and_goes_to_the_verdict(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.close()


def test_the_command_can_be_copied(desktop):
    desktop.locator("button[data-copy]").click()
    desktop.locator("button[data-copy]", has_text=re.compile("^(Copied|Selected)$")).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_only_down(open_page, scheme):
    page = open_page(360, 740, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
    )
    assert wide > 3  # the tables are wider, each in its own box
    page.close()


def test_the_dark_page_is_dark_and_text_stands_out_in_both(open_page):
    papers = []
    for scheme in ("light", "dark"):
        page = open_page(scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 300
        assert contrasts[0][0] >= 4.5, contrasts[:5]
        page.close()
    assert papers == ["rgb(254, 254, 254)", "rgb(20, 23, 27)"]


def test_print_is_dark_on_light_and_whole(open_page):
    page = open_page(scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    assert page.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll.tall')).maxHeight") == "none"
    page.close()
