"""The page for everybody: by keyboard, with a screen reader, in the dark, on a telephone, without motion."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.apps.visits import EFFUSION, choose_sample, first_counterfactual, generate, row, set_level


def overflow(page):
    """Pixels by which the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def violations(page):
    """What axe finds against WCAG 2.2, levels A and AA."""
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}}).response["violations"]
    return {one["id"]: [node["html"] for node in one["nodes"]] for one in found}


def test_all_of_it_by_keyboard(visiting):
    visit = visiting()
    page = visit.open()
    page.get_by_role("button", name="Phantom 1").wait_for()
    names = []
    for _ in range(6):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
    assert names == [
        "Skip to the content",
        "Counterfactuals",
        "Key set",
        "theme-button",
        "Phantom 1",
        "Phantom 2",
    ]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Phantom 2")).to_have_attribute("aria-pressed", "true")
    row(page, EFFUSION).get_by_role("radio", name="As is").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(row(page, EFFUSION).get_by_role("radio", name="Present")).to_be_checked()
    page.keyboard.press("Enter")  # as in any form
    expect(page.locator("#status-text")).to_contain_text("Counterfactual in")
    expect(page.locator("#announcements")).to_contain_text("Counterfactual in")
    page.get_by_role("tab", name="Counterfactuals").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Audits")).to_be_focused()
    expect(page.locator("#audits")).to_be_visible()
    expect(page.locator("#images")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier_that_axe_knows(visiting, scheme):
    visit = visiting(color_scheme=scheme)
    page = first_counterfactual(visit)
    page.locator("#overlay").check()
    visit.keep(f"difference_{scheme}")
    assert violations(page) == {}
    page.get_by_role("tab", name="Audits").click()
    page.get_by_role("button", name="New audit").click()
    assert violations(page) == {}


def test_dark_by_the_system_and_by_the_button(visiting):
    visit = visiting(color_scheme="dark")
    page = visit.open()
    body = page.locator("body")
    toggle = page.get_by_role("button", name="Dark theme")
    expect(body).to_have_css("background-color", "rgb(13, 18, 23)")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    toggle.click()
    expect(body).to_have_css("background-color", "rgb(238, 241, 244)")
    page.reload()
    expect(body).to_have_css("background-color", "rgb(238, 241, 244)")
    expect(toggle).to_have_attribute("aria-pressed", "false")


def test_on_a_telephone(visiting):
    visit = visiting(width=390, height=844, has_touch=True, is_mobile=True)
    page = first_counterfactual(visit)
    assert overflow(page) == 0
    visit.keep("narrow")
    set_level(
        page, "finding.edema", "Present"
    )  # the picture stays in sight while the controls scroll below it
    expect(page.locator('tr[data-score="edema"] td.after')).to_have_text("0.90")
    expect(page.locator("#stage")).to_be_in_viewport(ratio=0.9)
    page.get_by_role("radio", name="Side by side").check()
    assert overflow(page) == 0
    page.get_by_role("tab", name="Audits").click()
    page.get_by_role("button", name="New audit").click()
    assert overflow(page) == 0
    visit.keep("narrow_audit_form")


def test_without_motion_where_it_is_not_wanted(visiting):
    visit = visiting(reduced_motion="reduce")
    page = visit.open()
    choose_sample(page)
    set_level(page, EFFUSION, "Present")
    visit.server.delays[:] = [1.0]
    generate(page)
    bar = page.locator("#progress span")
    expect(bar).to_be_visible()
    expect(bar).to_have_css("animation-name", "none")
    expect(page.locator("#status-text")).to_contain_text("Counterfactual in")
