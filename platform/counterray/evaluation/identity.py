"""Identity kept: is the counterfactual still recognised as the patient it was made from?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from counterray.models.predictors.retrieval import ranks


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
    strangers = len(set(patients) - set(gallery_patients))
    if strangers:
        raise ValueError(
            f"Re-identification: {strangers} of {len(set(patients))} patients have no gallery image; take "
            "the gallery from the split that the counterfactuals were made from."
        )
    return ranks(
        normalize(query.double(), dim=1), normalize(gallery.double(), dim=1), patients, gallery_patients
    )
