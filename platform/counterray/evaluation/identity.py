"""Identity kept: is the counterfactual still recognised as the patient it was made from?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def reidentification_rank(
    query: Tensor, gallery: Tensor, *, patients: Sequence[str], gallery_patients: Sequence[str]
) -> Tensor:
    """Rank of the own patient among all gallery images, nearest first; 1 is best.

    ``1 + the number of other patients' images whose cosine similarity to the query is at least that of the
    own patient's most similar image``. Ties count against the query, so that an encoder that maps every
    image to one point does not pass as perfect.

    Args:
        query: Identity features ``[B, D]`` of the counterfactuals.
        gallery: Identity features ``[G, D]`` of real test images.
        patients: The B queries' patients, each of them in the gallery.
        gallery_patients: The G gallery images' patients.

    Returns:
        ``[B]`` ranks.

    Raises:
        ValueError: If a query's patient is not in the gallery.
    """
    codes = {patient: code for code, patient in enumerate(sorted(set(gallery_patients)))}
    strangers = sum(patient not in codes for patient in patients)
    if strangers:
        raise ValueError(
            f"Re-identification: {strangers} of {len(patients)} queries are of patients without a gallery "
            "image; take the gallery from the split that the counterfactuals were made from."
        )
    similarity = normalize(query.double(), dim=1) @ normalize(gallery.double(), dim=1).T
    own = torch.tensor([codes[p] for p in patients])[:, None] == torch.tensor(
        [codes[p] for p in gallery_patients]
    )
    best = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    # A rounding error is not a difference: without the margin, a tie would be decided by it.
    return 1 + ((similarity >= best - 1e-9) & ~own).sum(dim=1)
