"""A contact sheet: what is on it, and that nothing gets out of it or into it."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import torch
from PIL import Image

from counterray.evaluation.contact_sheet import TILE_PICTURE_SIZE, Tile, contact_sheet
from counterray.evaluation.wording import SYNTHETIC_NOTICE

BEFORE = torch.full((1, 16, 16), -1.0)
AFTER = torch.ones(1, 16, 16)


def sheet(*tiles: Tile, **facts: str) -> str:
    return contact_sheet(tiles, title="Counterfactuals", lead="Two of 200.", facts=facts, footer="Made so.")


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_each_tile_shows_input_counterfactual_and_difference():
    page = sheet(Tile(caption="No. 1: edema", before=BEFORE, after=AFTER))
    before, after, difference = pictures(page)
    assert before.shape == (TILE_PICTURE_SIZE, TILE_PICTURE_SIZE)
    assert (before.max(), after.min()) == (0, 255)
    red, _, blue = difference.reshape(-1, 3).mean(axis=0)
    assert red > blue, "brighter than before is orange"
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["Input", "Counterfactual", "Difference"]
    assert "No. 1: edema" in page


def test_a_donor_is_shown_where_there_is_one():
    page = sheet(Tile(caption="a", before=BEFORE, after=AFTER, donor=AFTER))
    assert len(pictures(page)) == 4
    assert "<figcaption>Pathology from</figcaption>" in page


def test_the_page_warns_loads_nothing_and_escapes_everything():
    page = sheet(
        Tile(caption="<script>alert(1)</script>", before=BEFORE, after=AFTER), Prompt='"><img src=x>'
    )
    assert SYNTHETIC_NOTICE.split(":")[0] in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "<img src=x>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for words in ("Two of 200.", "Made so.", "Prompt"):
        assert words in page


def test_equal_tiles_give_equal_pages():
    tile = Tile(caption="a", before=BEFORE, after=AFTER)
    assert sheet(tile, Seed="0") == sheet(tile, Seed="0")
