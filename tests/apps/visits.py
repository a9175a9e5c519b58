"""What visitors of the page do again and again."""

from __future__ import annotations

import time

from playwright.sync_api import expect

EFFUSION = "finding.pleural_effusion"


def row(page, variable):
    return page.locator(f'[data-variable="{variable}"]')


def set_level(page, variable, level):
    row(page, variable).get_by_role("radio", name=level, exact=True).check()


def score(page, name):
    """Before, after and change, as they are written."""
    return page.locator(f'tr[data-score="{name}"] td').all_text_contents()


def choose_sample(page, number=1):
    page.get_by_role("button", name=f"Phantom {number}").click()


def generate(page):
    page.get_by_role("button", name="Generate").click()


def first_counterfactual(visit):
    """From the first sample to a pleural effusion."""
    page = visit.open()
    choose_sample(page)
    set_level(page, EFFUSION, "Present")
    generate(page)
    expect(page.locator("#status-text")).to_contain_text("Counterfactual in")
    return page


def asked_times(page, server, count):
    """Waits until the server was asked so often."""
    deadline = time.monotonic() + 30
    while len(server.asked) < count and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert len(server.asked) == count
