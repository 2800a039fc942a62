"""report.html in headless Chromium: quiet, narrow, by keyboard, in light and dark, for screen readers, on paper."""

import shutil
from itertools import pairwise

import pytest
import report_cases

from transformer_lab.comparison.reporting.page.document import page

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright (extra dev)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
CASES = ("sound", "defect", "unjudged", "hostile", "empty", "large")
UNFOLD = "details => details.forEach(element => element.open = true)"

# The lowest contrast of any text on the page (WCAG 2.2, 1.4.3), with the text. The ground is the nearest colour behind
# it that is not transparent; in a chart, its background. What only screen readers get has no contrast.
LOWEST_CONTRAST = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = channels(colour).map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : Math.pow((c + 0.055) / 1.055, 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      if (e.matches("svg.line-chart")) return getComputedStyle(e.querySelector(".back")).fill;
      const colour = getComputedStyle(e).backgroundColor;
      if (channels(colour).length < 4 || channels(colour)[3] === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let lowest = [99, "", 0], count = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest(".hidden, style, svg title, svg desc")) continue;
    const style = getComputedStyle(element);
    const ink = luminance(element.closest("svg") ? style.fill : style.color), back = luminance(ground(element));
    const contrast = (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, walker.currentNode.data];
    count += 1;
  }
  return [lowest[0], lowest[1], count];
}"""


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for case in CASES:
        (folder / f"{case}.html").write_text(page(getattr(report_cases, case)()), encoding="utf-8")
    return folder


@pytest.fixture
def opened(chromium, files):
    """A function that opens a case in a window of its own: the tab."""
    contexts = []

    def open_case(case, width=1280, scheme="light", watch=None):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        if watch:
            for event in ("console", "pageerror", "request", "dialog"):
                tab.on(event, lambda what, event=event: watch(event, what))
        tab.goto((files / f"{case}.html").as_uri())
        return tab

    yield open_case
    for context in contexts:
        context.close()


@pytest.mark.parametrize("case", CASES)
def test_it_is_quiet_and_does_not_scroll_sideways(opened, case):
    seen = []
    tab = opened(case, 360, watch=lambda event, what: seen.append((event, getattr(what, "url", what))))
    assert tab.evaluate("[document.documentElement.scrollWidth, document.querySelector('h1').offsetWidth > 200]") == [
        *(360, True),
    ]
    tab.eval_on_selector_all("details", UNFOLD)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert [event for event, _ in seen] == ["request"] and seen[0][1] == tab.url
    # That the page itself is what scrolls, and that it would be noticed:
    tab.evaluate("document.querySelectorAll('.scroll').forEach(e => e.style.overflow = 'visible')")
    if case != "empty":
        assert tab.evaluate("document.documentElement.scrollWidth") > 360
    tab.evaluate("fetch('https://example.invalid/').catch(() => 0)")
    assert "console" in [event for event, _ in seen]  # the policy refuses, and says so


def test_the_keyboard_reaches_everything(opened):
    tab = opened("sound", 360)
    tab.keyboard.press("Tab")
    skip = tab.evaluate("[document.activeElement.className, document.activeElement.getBoundingClientRect().left]")
    assert skip[0] == "skip" and 0 <= skip[1] < 360
    outline = (
        "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    )
    assert tab.evaluate(outline) == "solid3px"
    tab.keyboard.press("Enter")
    assert tab.evaluate("[location.hash, document.activeElement.id]") == ["#main", "main"]
    seen = []
    for _ in range(80):
        tab.keyboard.press("Tab")
        found = tab.evaluate("[document.activeElement.tagName, document.activeElement.getAttribute('aria-label')]")
        if found[0] == "BODY":
            break
        seen.append(found)
    regions = [label for tag, label in seen if tag == "DIV"]
    visible = tab.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility()).map(e => e.ariaLabel)"
    )
    assert regions == visible and len(regions) >= 7
    assert sum(tag == "SUMMARY" for tag, _ in seen) == tab.locator("summary").count() >= 8


def test_a_wide_table_scrolls_and_unfolds_by_keyboard(opened):
    tab = opened("sound", 360)
    tab.locator(".scroll").first.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.querySelector('.scroll').scrollLeft > 0")
    region = tab.get_by_role("region", name="Taps of torch float32")
    assert not region.is_visible()
    tab.locator("summary", has_text="torch float32: 55 taps").focus()
    tab.keyboard.press("Enter")
    assert region.is_visible()
    before = region.locator("thead").bounding_box()["y"]
    region.evaluate("element => element.scrollTop = 400")
    assert region.evaluate("element => element.scrollTop") > 0
    assert region.locator("thead").bounding_box()["y"] - before == pytest.approx(0, abs=60)  # it stays in sight


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("case", ["sound", "defect", "hostile"])
def test_text_can_be_read(opened, case, scheme):
    tab = opened(case, scheme=scheme)
    tab.eval_on_selector_all("details", UNFOLD)
    contrast, text, count = tab.evaluate(LOWEST_CONTRAST)
    assert contrast >= 4.5, text
    assert count > 500
    tab.evaluate("document.querySelector('h1').insertAdjacentHTML('afterend', '<p class=faint>faint</p>')")
    tab.evaluate("document.querySelector('.faint').style.color = 'rgb(120, 120, 120)'")
    assert tab.evaluate(LOWEST_CONTRAST)[0] < 4.5 and tab.evaluate(LOWEST_CONTRAST)[1] == "faint"


STYLES = "getComputedStyle(document.querySelector('{}')).{}"


def test_light_and_dark_differ(opened):
    what = [(part, kind) for part in ("body", ".verdict", "h2", "a[href]") for kind in ("color", "backgroundColor")]
    what.append((".line-chart .back", "fill"))
    tabs = [opened("defect", scheme=scheme) for scheme in ("light", "dark")]
    light, dark = ({key: tab.evaluate(STYLES.format(*key)) for key in what} for tab in tabs)
    for key in (("body", "color"), (".verdict", "backgroundColor"), ("h2", "color"), ("a[href]", "color")):
        assert light[key] != dark[key]
    assert light["body", "backgroundColor"] == light[".line-chart .back", "fill"] == "rgb(255, 255, 255)"
    assert dark["body", "backgroundColor"] == dark[".line-chart .back", "fill"] == "rgb(20, 24, 29)"


def test_the_verdicts_differ_in_shape(opened):
    tabs = [opened(case) for case in ("sound", "defect")]
    borders = [
        [tab.evaluate(STYLES.format(".verdict", f"borderTop{kind}")) for kind in ("Style", "Width")] for tab in tabs
    ]
    assert borders == [["solid", "1px"], ["double", "4px"]]


def test_what_a_screen_reader_gets(opened):
    tab = opened("defect")
    tab.locator("summary", has_text="torch float32: 55 taps").click()
    nodes = tab.context.new_cdp_session(tab).send("Accessibility.getFullAXTree")["nodes"]
    seen = [
        (node["role"]["value"], node.get("name", {}).get("value", ""), node.get("properties", []))
        for node in nodes
        if not node["ignored"]
    ]
    names = {}
    for role, name, _ in seen:
        names.setdefault(role, []).append(name)
    levels = [
        next(p["value"]["value"] for p in more if p["name"] == "level") for role, _, more in seen if role == "heading"
    ]
    assert names["heading"][:3] == ["Comparison of storybook", "A defect was found", "First divergence"]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for role in ("banner", "main", "contentinfo"):
        assert len(names[role]) == 1
    assert names["navigation"] == ["On this page"]
    assert "Taps of torch float32" in names["table"] and all(names["table"])
    assert len(set(names["region"])) == len(names["region"]) and all(names["region"])
    charts = [name for role in ("image", "img") for name in names.get(role, [])]
    assert any(name.startswith("Error / bound, by block") for name in charts) and len(charts) == 2 + 2 * 3
    assert {"numpy float32", "blocks.2.attn.scores"} <= {name.split(" backend")[0] for name in names["rowheader"]}
    assert "nearest" in names["columnheader"]


def test_paper_shows_whole_tables(opened):
    tab = opened("sound")
    tab.emulate_media(media="print")
    assert tab.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX === 'visible')"
    )
    assert not tab.locator("nav").is_visible() and tab.locator("h1").is_visible()
