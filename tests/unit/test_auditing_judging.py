"""What judges say of an audit's images, by judges whose answers stand in a table."""

import pytest
import torch

from counterray.evaluation.metric import Judge
from jobs.auditing.judging import judged
from jobs.auditing.views import Views

OBSERVED, NULL, MADE = (
    torch.tensor(levels).reshape(2, 1, 1, 1) for levels in ((0.0, 0.2), (0.0, 0.0), (1.0, 0.6))
)
"""Two studies: as observed, at their own level, and at the level that is set."""


def judge(null, first, second, outputs=()):
    """Says ``null`` of images of level 0, ``first`` of level 1 and ``second`` of all others."""

    def predict(image):
        level = image[:, 0, 0, 0]
        row = torch.where(level == 0, 0, torch.where(level == 1, 1, 2))
        return torch.tensor([null, first, second])[row]

    return Judge(name="judge", checksum="1", predict=predict, outputs=outputs)


CLASSIFIER = judge([0.5, 0.5], [0.9, 0.3], [0.5, 0.4])
IDENTITY = judge([1.0, 0.0], [0.0, 2.0], [3.0, 0.0])
SEX, SCANNER, SITE = (
    judge([0.0, 1.0, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0], outputs=("male", "female", "unknown")),
    judge([0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.5, 0.3, 0.2]),
    judge([1.0, 0.0], [0.9, 0.1], [0.75, 0.25]),
)


def said(judges, attributes):
    views = Views("sex", ("female", "male"))
    found = judged(judges, attributes, MADE, views=views, observed=OBSERVED, null=NULL)
    assert {values.dtype for values in found.values()} == {torch.float64}
    return {name: values.tolist() for name, values in found.items()}


def test_what_judges_say_by_hand():
    found = said(
        {"classifier": CLASSIFIER, "identity_encoder": IDENTITY},
        {"sex": SEX, "scanner": SCANNER, "site": SITE},
    )
    assert found["composition"] == pytest.approx([1 / 2, 0.4 / 2])
    # Beside the observed images: (0, 2) beside (1, 0), and (3, 0) beside itself.
    assert found["identity"] == pytest.approx([0, 1])
    assert found["findings"] == [pytest.approx([0.4, 0.2]), pytest.approx([0, 0.1], abs=1e-6)]
    # Half the L1 distance: of scanners (0.4 + 0 + 0.4) / 2 and 0, of sites 0.1 and 0.25; the larger counts.
    assert found["others"] == pytest.approx([0.4, 0.25])
    # Of the levels that are compared, in their order.
    assert found["read"] == [pytest.approx([0.2, 0.8]), pytest.approx([0.3, 0.7])]


@pytest.mark.parametrize(
    ("judges", "attributes", "columns"),
    [
        ({}, {}, set()),
        ({"classifier": CLASSIFIER}, {}, {"findings"}),
        ({"identity_encoder": IDENTITY}, {}, {"identity"}),
        ({}, {"sex": SEX}, {"read"}),
        ({}, {"scanner": SCANNER}, {"others"}),
    ],
)
def test_nothing_is_said_by_judges_that_are_not_there(judges, attributes, columns):
    assert set(said(judges, attributes)) == {"composition", *columns}
