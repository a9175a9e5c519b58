"""The page's second tab: starting an audit, following it, its verdicts and its report."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import torch
from playwright.sync_api import expect

from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.report import AuditReport
from counterray.audits.reporting.gallery import Example, most_affected
from counterray.audits.reporting.results import AttributeResults
from serve.schemas import Audit, AuditRequest
from tests.audit_scores import config, noisy_scores

SALT = b"a salt of sixteen bytes"
REQUEST = AuditRequest(
    classifiers=("bundles/densenet_chexpert", "onnx/triage_v2.onnx"),
    generator="phantom-exact",
    data="datasets/phantom",
    attributes=("sex", "scanner"),
)


@pytest.fixture(scope="module")
def report():
    """A real report of random scores, with a picture in it."""
    scores = noisy_scores(size=60, shift=0.1)
    grey = torch.zeros(1, 8, 8)
    example = Example.of(
        scores,
        most_affected(scores, count=1, salt=SALT)[0],
        salt=SALT,
        observed=grey,
        repainted=grey,
        counterfactual=grey + 0.2,
    )
    results = AttributeResults.of(
        scores, [counterfactual_effect(scores, config(), readings=[])], resamples=20, examples=[example]
    )
    about = {"facts": {"Code version": "0.1.0", "Seed": 7}, "bundles": {"Classifier": "ab12cd"}}
    return AuditReport(title="Audit of densenet_chexpert", results=[results], **about).html()


@pytest.fixture
def visit(visiting):
    return visiting()


def add(server, state, *, minutes_ago, **changes):
    """An audit in the server's storage."""
    created = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    audit = Audit(
        id=f"{len(server.audits) + 1:032x}",
        state=state,
        created=created,
        finished=None if state == "running" else created + timedelta(minutes=3, seconds=20),
        request=changes.pop("request", REQUEST),
        message=changes.pop("message", ""),
        verdicts=changes.pop("verdicts", {}),
    )
    server.audits[audit.id] = audit
    return audit


def open_audits(visit):
    page = visit.open()
    page.get_by_role("button", name="Phantom 1").wait_for()
    page.get_by_role("tab", name="Audits").click()
    return page


def test_an_audit_is_started_followed_and_read(visit, report):
    visit.server.report = lambda: report
    page = open_audits(visit)
    expect(page.locator("#audits-hint")).to_have_text("None yet on this server.")
    page.get_by_role("button", name="New audit").click()
    expect(page.get_by_label("Classifiers")).to_be_focused()
    expect(page.locator("#audit-attributes-hint")).to_have_text("This model sets: sex, age, scanner.")
    page.get_by_label("Classifiers").fill("bundles/densenet_chexpert\n onnx/triage_v2.onnx \n")
    page.get_by_label("Dataset").fill("datasets/phantom")
    page.get_by_label("Attributes, separated by commas").fill("sex, scanner")
    page.get_by_label("Studies at most").fill("200")
    visit.keep("audit_form")
    page.get_by_role("button", name="Start the audit").click()
    item = page.locator("#audit-items button")
    expect(item).to_contain_text("running")
    [audit] = visit.server.audits.values()
    assert audit.request == REQUEST.model_copy(update={"studies": 200})
    verdicts = {
        "sex": {"densenet_chexpert, edema": "depends", "triage_v2, edema": "invariant"},
        "scanner": {"densenet_chexpert, edema": "inconclusive", "triage_v2, edema": "cannot_tell"},
    }
    visit.server.finish(audit.id, verdicts=verdicts)
    expect(item).to_contain_text("succeeded")  # the page looks by itself
    expect(page.locator("#announcements")).to_contain_text("succeeded")
    table = page.get_by_role("region", name="Verdicts")
    for said in ("Depends on it", "Invariant within the margins", "Inconclusive", "Cannot tell"):
        expect(table).to_contain_text(said)
    frame = page.frame_locator("iframe.report")
    expect(frame.locator("h1")).to_have_text("Audit of densenet_chexpert")
    # Its styles hold although the page's policy refuses styles in markup, and its pictures show.
    expect(frame.locator("section").first).to_have_css("border-radius", "14px")
    expect(frame.locator(".legend .bar").first).to_have_css("background-image", re.compile("gradient"))
    assert frame.locator("img").first.evaluate("image => image.naturalWidth") > 0
    visit.keep("audit_report")
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download report").click()
    assert downloading.value.path().read_text(encoding="utf-8") == report


def test_nothing_in_a_report_runs(visit):
    visit.server.report = lambda: (
        "<title>t</title><h1 onclick='parent.document.title = 1'>Report</h1>"
        "<script>parent.document.title = 'ran'</script>"
    )
    add(visit.server, "succeeded", minutes_ago=5)
    page = open_audits(visit)
    page.locator("#audit-items button").click()
    heading = page.frame_locator("iframe.report").locator("h1")
    heading.click()
    assert page.title() == "counterray"
    refused = ("inline event handler", "Blocked script execution")
    visit.errors[:] = [error for error in visit.errors if not any(said in error for said in refused)]


def test_a_failed_audit_says_why_and_is_deleted(visit):
    add(visit.server, "running", minutes_ago=1)
    message = "Bundle bundles/densenet_chexpert is not there. Name a folder under the audit roots."
    failed = add(visit.server, "failed", minutes_ago=9, message=message)
    page = open_audits(visit)
    items = page.locator("#audit-items button")
    expect(items).to_have_count(2)
    items.first.click()
    expect(page.locator("#audit-body")).to_contain_text("Name a folder under the audit roots.")
    expect(page.locator("#audit-body")).to_contain_text("3 min 20 s")
    visit.keep("audit_failed")
    page.locator("#audit-body").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    assert failed.id in visit.server.audits
    page.locator("#audit-body").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(items).to_have_count(1)
    assert failed.id not in visit.server.audits


def test_a_running_audit_is_stopped(visit):
    audit = add(visit.server, "running", minutes_ago=1)
    page = open_audits(visit)
    page.locator("#audit-items button").click()
    page.locator("#audit-body").get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(page.locator("#audit-items button")).to_contain_text("stopped")
    assert visit.server.audits[audit.id].state == "stopped"


def test_what_the_server_refuses_of_an_audit_is_said(visit):
    visit.refusals = {422}
    page = open_audits(visit)
    page.get_by_role("button", name="New audit").click()
    page.get_by_label("Classifiers").fill("bundles/a")
    page.get_by_label("Dataset").fill("datasets/phantom")
    page.get_by_label("Attributes, separated by commas").fill("sex")
    page.get_by_label("Studies at most").evaluate("field => { field.min = 0; field.value = 3; }")
    page.get_by_role("button", name="Start the audit").click()
    expect(page.locator("#audit-problem")).to_contain_text("greater than or equal to 10")
    expect(page.get_by_label("Dataset")).to_have_value("datasets/phantom")  # nothing typed is lost
