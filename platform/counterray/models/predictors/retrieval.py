"""Retrieval: how far down a list of neighbours the right one stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ranks(
    queries: Tensor,
    gallery: Tensor,
    query_groups: Sequence[str],
    gallery_groups: Sequence[str],
    *,
    exclude_self: bool = False,
) -> Tensor:
    """Rank of each query's nearest gallery entry of its own group, by cosine.

    Args:
        queries: ``[N, D]`` of unit length.
        gallery: ``[M, D]`` of unit length.
        query_groups: The N queries' groups.
        gallery_groups: The M gallery entries' groups.
        exclude_self: For a gallery that is the queries themselves: an image is then not matched with
            itself, so images alone in their group are no queries, but stay in the gallery.

    Returns:
        ``[n]`` from 1 (best) up, for the n queries that have an entry of their group. An entry of another
        group at the same cosine counts as nearer, so that constant features earn nothing.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys((*query_groups, *gallery_groups)))}
    rows = torch.tensor([codes[group] for group in query_groups], device=queries.device)
    columns = torch.tensor([codes[group] for group in gallery_groups], device=queries.device)
    similarity = queries @ gallery.T
    match = rows[:, None] == columns[None, :]
    other = ~match
    if exclude_self:
        match = match & ~torch.eye(len(match), dtype=torch.bool, device=match.device)
    answerable = match.any(1)
    similarity, match, other = similarity[answerable], match[answerable], other[answerable]
    best = similarity.masked_fill(~match, float("-inf")).amax(1, keepdim=True)
    return 1 + ((similarity >= best) & other).sum(1)


def recall(found: Tensor, k: int) -> float:
    """Share of ranks that are at most k; 1 is best."""
    return float((found <= k).double().mean())


def mean_reciprocal_rank(found: Tensor) -> float:
    """Mean of one over the rank; 1 is best."""
    return float((1 / found.double()).mean())
