from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from counterray.evaluation.charts import Dots, Line
from counterray.evaluation.pictures import effect_gradient, effect_picture, grey_picture
from counterray.evaluation.report import (
    Card,
    Cards,
    Curves,
    DotPanel,
    ImageGrid,
    ImageRow,
    KeyValues,
    Legend,
    Missing,
    Panel,
    Report,
    Section,
    Table,
    Text,
    format_number,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Reads a page as a browser would: elements, attributes, text; complains about unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[bool] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    @property
    def outside(self) -> list[tuple[str, dict[str, str | None]]]:
        """Elements that are not part of a chart."""
        return [e for e, inside in zip(self.elements, self.inside, strict=True) if not inside]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append("svg" in self.open)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append("svg" in self.open)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def full_report(word: str = "edema") -> Report:
    picture = grey_picture(torch.zeros(1, 8, 8))
    line = Line(word, [0, 1, 2], [3.0, 2.0, 1.0])
    return (
        Report(title=word, subtitle=word, notice=word, footer=word)
        .add(
            Section(f"Numbers {word}", [Cards([Card(word, 0.5, word, word)]), Text([word], "warning")], word)
        )
        .add(Section("Tables", [Table([word, "n"], [[word, 3], ["x", Missing(word)]], word)]))
        .add(Section("Facts", [KeyValues([(word, word)], word, folded=True)]))
        .add(
            Section(
                "Charts",
                [
                    Curves(
                        [
                            Panel(word, [line], x_label=word, y_label=word),
                            DotPanel(word, [word], [Dots(word, [(0.5, 0.4, 0.6)])], word, marks=[0.5]),
                        ],
                        word,
                    )
                ],
            )
        )
        .add(
            Section(
                "Pictures",
                [
                    ImageGrid(
                        [word, "effect"],
                        [ImageRow(word, [picture, None])],
                        word,
                        Legend(word, effect_gradient(), word, word, word),
                    )
                ],
            )
        )
    )


def test_the_page_asks_for_nothing_from_outside() -> None:
    page = full_report().render()
    reader = Reader(page)
    for tag, attributes in reader.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "image"}, tag
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            if name in attributes:
                assert str(attributes[name]).startswith(("data:image/png;base64,", "#"))
        for address in re.findall(r"url\(([^)]*)\)", str(attributes.get("style", ""))):
            assert address.strip("'\"").startswith("#")
    assert "://" not in page
    assert "@import" not in page
    policies = [
        a.get("content") for t, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_words_stay_words() -> None:
    plain, hostile = Reader(full_report().render()), Reader(full_report(HOSTILE).render())
    # The same elements with the same attributes: nothing of the text became markup.
    assert [(t, sorted(a)) for t, a in plain.outside] == [(t, sorted(a)) for t, a in hostile.outside]
    # Charts lay themselves out by the length of their words; their kinds of elements stay.
    assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in plain.elements}
    assert hostile.text.count("alert(1)") >= 2 * 12
    assert HOSTILE in hostile.text


def test_references_inside_the_page_exist_and_are_unique() -> None:
    reader = Reader(full_report().render())
    names = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(names) == len(set(names))
    used = [str(a[k])[1:] for _, a in reader.elements for k in ("href",) if str(a.get(k, "")).startswith("#")]
    assert used
    assert set(used) <= set(names)


def test_pictures_charts_and_fields_can_be_read_aloud() -> None:
    reader = Reader(full_report().render())
    assert all(attributes.get("alt") for tag, attributes in reader.elements if tag == "img")
    spoken = [str(attributes.get("aria-label")) for tag, attributes in reader.elements if tag == "svg"]
    assert spoken[0] == "edema by edema. edema from 3 to 1, lowest 1, highest 3."
    assert "edema 0.5" in spoken[1]
    assert ("html", {"lang": "en"}) in reader.elements


def test_a_dollar_in_a_chart_is_no_formula() -> None:
    chart = Panel("t", [Line("cost $x$", [0, 1], [1.0, 2.0])], x_label="a_b ^ $y$").svg
    assert "cost $x$" in Reader(chart).text
    assert "a_b ^ $y$" in Reader(chart).text


def test_charts_follow_the_pages_colours() -> None:
    page = full_report().render()
    charts = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--series-1)" in charts
    colours = set(re.findall(r"#[0-9a-f]{6}\b", charts))
    # Black is matplotlib's default for marks that it then draws nothing with.
    assert colours <= {"#000000"}


def test_empty_sections_and_blocks_are_left_out() -> None:
    report = Report(title="t").add(Section("Nothing", [Table(["a"], []), Cards([]), Text([""]), Curves([])]))
    report.add(Section("Something", [KeyValues([]), Text(["here"])]))
    page = report.render()
    assert "Nothing" not in page
    assert "Something" in page
    assert "<dl" not in page
    assert "<nav" not in page


def test_a_missing_value_says_so_and_why() -> None:
    report = Report(title="t").add(
        Section(
            "s",
            [
                Table(["m", "v"], [["a", math.nan], ["b", None], ["c", Missing("no positives")], ["d", 0.5]]),
                Cards([Card("x", Missing("no judge"), unit="dB")]),
            ],
        )
    )
    text = Reader(report.render()).text
    assert text.count("not available") == 4
    assert "no positives" in text
    assert "no judge" in text
    assert "nan" not in text.lower().replace("not available", "")
    assert "dB" not in text


def test_missing_points_do_not_break_charts() -> None:
    panel = DotPanel("p", ["a", "b"], [Dots("s", [(math.nan,) * 3, (0.5, math.nan, math.nan)])], "x")
    assert "not available" in panel.svg
    assert "<svg" in Panel("empty", []).svg


def test_rows_must_fit_their_columns() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        Table(["a", "b"], [["x"]], "counts")
    with pytest.raises(ValueError, match="a row of 1 pictures under 2 columns"):
        ImageGrid(["a", "b"], [ImageRow("x", [None])])


def test_pictures_must_be_inside_the_page() -> None:
    with pytest.raises(ValueError, match="must be data URIs"):
        ImageGrid(["a"], [ImageRow("x", ["https://example.org/a.png"])])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.8567, "0.857"),
        (1.0, "1.000"),
        (-2.345, "−2.35"),
        (25.31, "25.3"),
        (312.4, "312"),
        (12345.6, "12\u202f346"),
        (3e-5, "3.0e−05"),
        (math.inf, "∞"),
        (1234567, "1\u202f234\u202f567"),
        ("a-b", "a-b"),
    ],
)
def test_numbers_for_reading(value: float | int | str, text: str) -> None:
    assert format_number(value) == text


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_grey_picture_maps_the_range_and_keeps_pixels_crisp() -> None:
    pixels = decode(grey_picture(torch.tensor([[[-1.0, 1.0], [0.0, 3.0]]]), size=4, resampling="nearest"))
    assert pixels.tolist() == [[0, 0, 255, 255], [0, 0, 255, 255], [128, 128, 255, 255], [128, 128, 255, 255]]


def test_picture_keeps_the_proportions() -> None:
    assert decode(grey_picture(torch.zeros(10, 20), size=100)).shape == (50, 100)


def test_effect_colours_have_a_sign_and_a_fixed_scale() -> None:
    before = torch.zeros(1, 1, 4)
    after = torch.tensor([[[0.3, -0.3, 0.0, 0.9]]])
    brighter, darker, same, far = decode(
        effect_picture(after, before, size=4, limit=0.6, resampling="nearest")
    )[0].astype(int)
    assert brighter[0] > brighter[2]
    assert darker[2] > darker[0]
    assert same.max() < 20
    assert far.tolist() == decode(effect_picture(before + 0.6, before, size=4, limit=0.6))[0, 0].tolist()


def test_pictures_refuse_what_is_no_grey_image() -> None:
    with pytest.raises(ValueError, match=r"this has shape \(3, 4, 4\)"):
        grey_picture(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="1 values that are not finite"):
        grey_picture(torch.tensor([[0.0, math.nan]]))
