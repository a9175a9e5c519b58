"""The page in a real browser: what a radiologist and an engineer do with it, and what goes wrong."""

import base64
import io
import re
import time

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.apps.page_server import KEY, Fault
from tests.apps.phantom_answers import SIZE
from tests.apps.pictures import drawn, grey_of, image_file
from tests.apps.visits import (
    EFFUSION,
    asked_times,
    choose_sample,
    first_counterfactual,
    generate,
    row,
    score,
    set_level,
)


@pytest.fixture
def visit(visiting):
    return visiting()


# From an image to a counterfactual.


def test_a_sample_becomes_a_counterfactual_with_scores_and_provenance(visit):
    page = first_counterfactual(visit)
    [(path, asked)] = visit.server.asked
    assert path == "counterfactuals"
    assert asked["do"] == {EFFUSION: 1.0}
    assert asked["model"] == "phantom-exact"
    assert score(page, "pleural_effusion") == ["0.05", "0.90", "+0.85"]
    assert score(page, "edema") == ["0.05", "0.05", "0.00"]
    first = page.locator("#scores tbody tr").first
    expect(first).to_contain_text("Pleural effusion")  # what was asked for comes first
    expect(first).to_contain_text("asked")
    width = first.locator(".bars .after").evaluate("bar => parseFloat(bar.style.width)")
    assert width == pytest.approx(90, abs=0.5)
    expect(page.locator("#inferred")).to_contain_text("male")
    expect(page.locator("#provenance")).to_contain_text("phantom-exact (exact)")
    expect(page.locator("#provenance")).to_contain_text("Synthetic")
    expect(page.locator("#frame-made .synthetic")).to_be_visible()
    visit.keep("counterfactual_light")


def test_the_pictures_shown_and_saved_are_the_servers(visit):
    page = first_counterfactual(visit)
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download PNG").click()
    saved = downloading.value
    assert saved.suggested_filename == "synthetic_phantom-exact_seed0.png"
    data = saved.path().read_bytes()
    assert Image.open(io.BytesIO(data)).text == {"Synthetic": "true"}
    made = np.asarray(Image.open(io.BytesIO(data)))
    sent = visit.server.phantoms.patients[0].grey
    assert np.array_equal(drawn(page, "frame-made"), np.repeat(made[..., None], 3, axis=2))
    assert np.array_equal(drawn(page, "frame-input")[..., 0], sent)
    assert not np.array_equal(made, sent)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_file_of_each_kind_is_taken(visit, kind):
    page = visit.open()
    expect(page.get_by_role("button", name="Phantom 1")).to_be_visible()
    grey = visit.server.phantoms.patients[2].grey
    data = image_file(grey, kind)
    page.locator("#file").set_input_files(
        {"name": f"film.{kind.lower()}", "mimeType": "application/octet-stream", "buffer": data}
    )
    expect(page.locator("#file-facts")).to_contain_text(f"film.{kind.lower()} · {kind}")
    if kind != "DICOM":  # which the browser cannot show before the server has read it
        expect(page.locator("#file-facts")).to_contain_text(f"{SIZE} × {SIZE} px")
    set_level(page, EFFUSION, "Absent")
    generate(page)
    expect(page.locator("#status-text")).to_contain_text("Counterfactual in")
    assert base64.b64decode(visit.server.asked[0][1]["image"]) == data
    assert score(page, "pleural_effusion")[1] == "0.05"
    assert np.array_equal(drawn(page, "frame-input")[..., 0], grey)


def test_a_file_can_be_dropped(visit):
    page = visit.open()
    data = base64.b64encode(image_file(visit.server.phantoms.patients[1].grey, "PNG")).decode()
    transfer = page.evaluate_handle(
        """data => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "dropped.png"));
            return transfer;
        }""",
        data,
    )
    page.dispatch_event("#stage", "drop", {"dataTransfer": transfer})
    expect(page.locator("#file-facts")).to_contain_text("dropped.png · PNG")
    expect(page.locator("#frame-input")).to_be_visible()


def test_words_and_several_seeds_side_by_side(visit):
    page = visit.open()
    page.get_by_label("Model").select_option("phantom-words")
    choose_sample(page, 2)
    page.get_by_role("radio", name="Words").check()
    page.get_by_label("What the image should show").fill("Severe pulmonary edema and pleural effusion")
    page.get_by_text("Sampling", exact=True).click()
    page.locator("#count").fill("4")
    page.get_by_label("First seed").fill("7")
    generate(page)
    expect(page.locator("#status-text")).to_contain_text("4 counterfactuals in")
    [(_, asked)] = visit.server.asked
    assert asked["prompt"] == "Severe pulmonary edema and pleural effusion"
    assert list(asked["seeds"]) == [7, 8, 9, 10]
    assert "do" not in asked
    seeds = page.locator("#seeds button")
    expect(seeds).to_have_count(4)
    expect(seeds.nth(3)).to_contain_text("Synthetic")
    before = drawn(page, "frame-made")
    seeds.nth(2).click()
    expect(seeds.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#provenance")).to_contain_text("Seed9")
    assert not np.array_equal(drawn(page, "frame-made"), before)
    assert float(score(page, "edema")[1]) > 0.9
    visit.keep("seeds")


def test_attributes_are_set_where_the_model_can(visit):
    page = visit.open()
    choose_sample(page)
    set_level(page, "sex", "female")
    page.locator("#variable-scanner").select_option("analog")
    age = page.locator("#variable-age")
    age.press("End")
    expect(age).to_have_attribute("aria-valuetext", "80+")
    generate(page)
    expect(page.locator("#status-text")).to_contain_text("Counterfactual in")
    assert visit.server.asked[0][1]["do"] == {"sex": "female", "scanner": "analog", "age": "80+"}
    assert score(page, "sex=male")[:2] == ["0.97", "0.04"]
    page.get_by_label("Model").select_option("phantom-words")  # sets findings only
    expect(row(page, "sex")).to_have_count(0)
    expect(page.locator("#stage")).to_have_attribute("data-shows", "input")


def test_what_is_known_goes_with_the_image(visit):
    page = visit.open()
    choose_sample(page)
    page.get_by_text("What is known of this image").click()
    page.locator("#known-sex").select_option("male")
    set_level(page, "finding.edema", "Present")
    generate(page)
    expect(page.locator("#status-text")).to_contain_text("Counterfactual in")
    assert visit.server.asked[0][1]["observed"] == {"sex": "male"}
    expect(page.locator("#inferred")).to_be_hidden()


# From one intervention to the next.


def test_a_moved_control_asks_by_the_noise_and_once(visit):
    page = first_counterfactual(visit)
    severity = page.get_by_label("Severity")
    for _ in range(3):
        severity.press("ArrowRight")
    expect(page.locator('tr[data-score="pleural_effusion"] td.after')).to_have_text("0.99")
    page.wait_for_timeout(600)
    assert len(visit.server.asked) == 2
    path, asked = visit.server.asked[1]
    assert re.fullmatch("counterfactuals/[0-9a-f]{32}", path)
    assert asked == {"do": {EFFUSION: 1.0}, "severity": "severe"}


def test_an_answer_that_comes_too_late_is_dropped(visit):
    page = first_counterfactual(visit)
    visit.server.delays[:] = [1.5]
    set_level(page, "finding.edema", "Present")
    asked_times(page, visit.server, 2)
    set_level(page, "finding.edema", "Absent")
    set_level(page, EFFUSION, "As is")
    asked_times(page, visit.server, 3)
    expect(page.locator('tr[data-score="pleural_effusion"] td.after')).to_have_text("0.05")
    page.wait_for_timeout(2000)  # the first would have come by now
    assert score(page, "edema")[1] == "0.05"
    assert visit.server.aborted == 1


def test_a_control_moved_while_the_server_abducts_counts(visit):
    page = visit.open()
    choose_sample(page)
    set_level(page, EFFUSION, "Present")
    visit.server.delays[:] = [1.0]
    generate(page)
    asked_times(page, visit.server, 1)
    set_level(page, "finding.edema", "Present")
    expect(page.locator('tr[data-score="edema"] td.after')).to_have_text("0.90")
    paths = [path for path, _ in visit.server.asked]
    assert paths == ["counterfactuals", f"counterfactuals/{1:032x}"]  # one abduction, not thrown away


def test_noise_that_the_server_forgot_is_abducted_again(visit):
    visit.refusals = {404}
    page = first_counterfactual(visit)
    visit.server.noise.clear()
    set_level(page, "finding.edema", "Present")
    expect(page.locator('tr[data-score="edema"] td.after')).to_have_text("0.90")
    assert [path.partition("/")[0] for path, _ in visit.server.asked] == ["counterfactuals"] * 3
    assert "image" in visit.server.asked[2][1]


def test_with_all_as_it_is_the_input_shows_and_nothing_is_asked(visit):
    page = first_counterfactual(visit)
    set_level(page, EFFUSION, "As is")
    expect(page.locator("#stage")).to_have_attribute("data-shows", "input")
    expect(page.locator("#provenance")).to_be_hidden()
    page.wait_for_timeout(400)
    assert len(visit.server.asked) == 1


def test_no_finding_and_a_finding_exclude_each_other(visit):
    page = visit.open()
    set_level(page, EFFUSION, "Present")
    set_level(page, "finding.no_finding", "Set")
    expect(row(page, EFFUSION).get_by_role("radio", name="As is")).to_be_checked()
    set_level(page, "finding.edema", "Present")
    expect(row(page, "finding.no_finding").get_by_role("radio", name="As is")).to_be_checked()


def test_a_request_can_be_cancelled(visit):
    page = visit.open()
    choose_sample(page)
    set_level(page, EFFUSION, "Present")
    visit.server.delays[:] = [30]
    generate(page)
    expect(page.locator("#elapsed")).to_contain_text("s")
    expect(page.locator("#viewer")).to_have_attribute("aria-busy", "true")
    visit.keep("working")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status-text")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Generate")).to_be_focused()
    deadline = time.monotonic() + 20
    while not visit.server.aborted and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert visit.server.aborted == 1  # the server heard of it


# Looking at it.


def test_the_swipe_moves_by_keyboard(visit):
    page = first_counterfactual(visit)
    swipe = page.get_by_role("slider", name="Boundary")
    made = page.locator("#frame-made")
    swipe.focus()
    for _ in range(5):
        swipe.press("ArrowRight")
    expect(made).to_have_css("clip-path", "inset(0px 0px 0px 55%)")
    expect(swipe).to_have_attribute("aria-valuetext", "55 % input, 45 % counterfactual")
    swipe.press("Home")
    expect(made).to_have_css("clip-path", "inset(0px 0px 0px 0%)")
    box = page.locator("#stage .swipe").bounding_box()
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    expect(swipe).to_have_value("25")  # the boundary goes where the pointer is


def test_window_and_level_by_the_formula(visit):
    page = first_counterfactual(visit)
    page.get_by_label("Window").fill("101")
    page.get_by_label("Level").fill("80")
    grey = visit.server.phantoms.patients[0].grey.astype(float)
    by_hand = np.rint(np.clip(255 * ((grey - 79.5) / 100 + 0.5), 0, 255))
    assert np.abs(drawn(page, "frame-input")[..., 0] - by_hand).max() <= 1
    page.get_by_role("button", name="Reset").click()
    assert np.array_equal(drawn(page, "frame-input")[..., 0], grey)


def test_the_difference_colours_what_changed_and_nothing_else(visit):
    page = first_counterfactual(visit)
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Effect map").click()
    effect = grey_of(base64.b64encode(downloading.value.path().read_bytes()).decode()).astype(int)
    page.locator("#overlay").check()
    shown = drawn(page, "frame-made").astype(int)
    red_over_blue = shown[..., 0] - shown[..., 2]
    assert (red_over_blue[effect > 134] > 0).all()  # brighter
    assert (red_over_blue[effect < 122] < 0).all()  # darker
    assert (red_over_blue[effect == 128] == 0).all()
    assert (effect > 134).any()
    visit.keep("difference")
    page.get_by_role("radio", name="Side by side").check()
    for frame in ("input", "made", "difference"):
        expect(page.locator(f"#frame-{frame}")).to_be_visible()
    assert np.ptp(drawn(page, "frame-made").astype(int), axis=2).max() == 0  # here without colours
    visit.keep("side_by_side")


# When it goes wrong.


def test_a_problem_says_what_is_wrong_and_what_to_do(visit):
    visit.refusals = {503}
    visit.server.faults[:] = [
        Fault(
            503,
            "All replicas are busy",
            "32 requests wait for phantom-exact, and no more may.",
            "Try again in a moment, or ask for fewer images.",
            {"Retry-After": "3"},
        )
    ]
    page = visit.open()
    choose_sample(page)
    set_level(page, EFFUSION, "Present")
    generate(page)
    alert = page.locator("#problem")
    expect(alert).to_have_attribute("role", "alert")
    for said in (
        "All replicas are busy",
        "32 requests wait",
        "ask for fewer images",
        "wait 3 s",
        "req-7c0d51",
    ):
        expect(alert).to_contain_text(said)
    visit.keep("problem")
    alert.get_by_role("button", name="Try again").click()
    expect(alert).to_be_hidden()
    expect(page.locator("#status-text")).to_contain_text("Counterfactual in")


def test_hostile_words_in_a_problem_stay_words(visit):
    visit.refusals = {422}
    visit.server.faults[:] = [Fault(422, "<img src=x onerror=alert(1)>", "<b>bold</b>", "")]
    page = visit.open()
    choose_sample(page)
    set_level(page, EFFUSION, "Present")
    generate(page)
    expect(page.locator("#problem strong")).to_have_text("<img src=x onerror=alert(1)>")


def test_a_server_that_is_gone(visit):
    page = visit.open()
    choose_sample(page)
    set_level(page, EFFUSION, "Present")
    page.route("**/v1/counterfactuals", lambda route: route.abort("connectionrefused"))
    generate(page)
    expect(page.locator("#problem")).to_contain_text("The server does not answer")
    visit.errors[:] = [e for e in visit.errors if "ERR_CONNECTION_REFUSED" not in e]


def test_a_file_that_is_no_image_is_refused_here(visit):
    page = visit.open()
    page.locator("#file").set_input_files(
        {"name": "notes.png", "mimeType": "image/png", "buffer": b"not a picture"}
    )
    expect(page.locator("#problem")).to_contain_text("Not a PNG, JPEG or DICOM file")
    page.locator("#file").set_input_files(
        {"name": "cut.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n cut off"}
    )
    expect(page.locator("#problem")).to_contain_text("The image cannot be read")
    assert visit.server.asked == []


def test_the_key_is_asked_for_once_and_leaves_the_address(visit):
    visit.refusals = {401}
    page = visit.open("")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    visit.keep("key")
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("does not know this key")
    dialog.get_by_label("Key").fill(KEY)
    dialog.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("button", name="Phantom 1")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Phantom 1")).to_be_visible()
    expect(dialog).to_be_hidden()
    page.goto("about:blank")
    page = visit.open()
    expect(page.get_by_role("button", name="Phantom 1")).to_be_visible()
    assert page.url == visit.server.url
    assert not any(KEY in address.partition("#")[0] for address in visit.addresses)
