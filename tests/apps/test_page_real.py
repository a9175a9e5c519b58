"""The page in a real browser, on the real application with small models: what a stand-in may get wrong."""

import pytest
from playwright.sync_api import expect

from tests.apps.page_server import PageServer, running
from tests.apps.visits import row, set_level
from tests.serve_world import local_app, radiograph, write_models


@pytest.fixture(scope="module")
def page_server(tmp_path_factory):
    """In place of the stand-in: the application itself."""
    models = write_models(tmp_path_factory.mktemp("page"))
    app, key = local_app(models, samples=[radiograph(32, 1), radiograph(32, 2)])
    with running(app) as url:
        server = PageServer(url)
        server.key = key
        yield server


def test_a_sample_a_finding_seeds_and_another_value(visiting):
    visit = visiting()
    page = visit.open(f"#key={visit.server.key}")
    page.locator("#model").select_option("words")
    page.locator("#samples button").first.click()
    set_level(page, "finding.edema", "Present")
    page.locator("#sampling summary").click()
    page.locator("#count").fill("3")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status-text")).to_contain_text("3 counterfactuals in")
    expect(page.locator("#seeds button")).to_have_count(3)
    expect(page.locator("#provenance")).to_contain_text("words")
    expect(page.locator("#provenance")).to_contain_text("Noise kept until")
    expect(page.locator('tr[data-score="edema"]')).to_be_visible()
    with page.expect_response("**/v1/counterfactuals/*") as answered:  # goes on from the noise, by itself
        set_level(page, "finding.cardiomegaly", "Present")
    assert answered.value.status == 200
    expect(page.locator("#provenance")).to_contain_text("Noise kept until")
    expect(page.locator("#problem")).to_be_hidden()
    visit.keep("real_seeds")


def test_what_a_model_needs_to_know_is_asked_for(visiting):
    visit = visiting()
    visit.refusals = {422}
    page = visit.open(f"#key={visit.server.key}")
    page.locator("#model").select_option("attributes")
    page.locator("#samples button").first.click()
    expect(row(page, "sex")).to_be_visible()
    set_level(page, "sex", "male")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#problem")).to_be_visible()
    visit.keep("real_problem")


def test_a_wrong_key_is_told(visiting):
    visit = visiting()
    visit.refusals = {401}
    page = visit.open("#key=wrong")
    expect(page.locator("#key-state")).to_contain_text("Key")
    expect(page.locator("#samples button")).to_have_count(0)
