"""Which bundles had part in another, and whether two trained apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from counterray.bundle import Bundle, BundleError, open_bundle
from counterray.storage import StorageError

logger = logging.getLogger(__name__)


def ancestors(bundle: Bundle) -> Iterator[tuple[str, Mapping[str, Any], Bundle | None]]:
    """Role and record of each bundle that had part in this one, and the bundle, ``None`` if it is gone.

    Parents of parents too: a diffusion's decoder has seen the judges of the decoder's losses.
    """
    for role, parent in bundle.manifest["parents"].items():
        opened = _parent(role, parent)
        yield role, parent, opened
        if opened is not None:
            yield from ancestors(opened)


def _parent(role: str, parent: Mapping[str, Any]) -> Bundle | None:
    try:
        opened = open_bundle(parent["uri"])
    except (BundleError, StorageError):
        opened = None
    if opened is None or opened.checksum != parent["checksum"]:
        logger.warning("the bundle of the parent %r is gone, so its patients cannot be compared", role)
        return None
    return opened


def require_apart(scorer: Bundle, role: str, parent: Mapping[str, Any], opened: Bundle | None) -> None:
    """Raises if a judge is that of a loss, saw the same patients, or is its like with the same seed."""
    same = scorer.checksum == parent["checksum"]
    if opened is not None and opened.method == "predictors":
        trained = opened.config
        folds = {scorer.config["loader"]["fold"], trained["loader"]["fold"]}
        same |= len(folds) == 1 or "all" in folds
        same |= scorer.stage == opened.stage and scorer.config["seed"] == trained["seed"]
    if same:
        raise BundleError(
            f"The judge {scorer.location.uri} is not apart from the generator's loss {role!r}, so its scores "
            "would flatter it. Train it with another seed, and the two on loader.fold a and b."
        )


def trained_on(bundle: Bundle, *, fingerprint: str, split: str, fold: str) -> str:
    """Why some studies are no fair test of a bundle; empty where nothing speaks against them.

    Args:
        bundle: What is tested.
        fingerprint: Of the data.
        split: Of the studies.
        fold: Of their patients, ``all``, ``a`` or ``b``.
    """
    theirs = str(bundle.config.get("loader", {}).get("fold", "all"))
    apart = "all" not in (theirs, fold) and theirs != fold
    if split != "train" or apart:
        return ""
    if bundle.manifest["data_fingerprint"] != fingerprint:
        return (
            f"The bundle {bundle.location.uri} trained on other data than these, on fold {theirs!r} of their "
            "training split; whether patients are in both cannot be told, and if so, numbers flatter it."
        )
    return (
        f"The bundle {bundle.location.uri} trained on fold {theirs!r} of the training split, whose fold "
        f"{fold!r} is audited: on patients that it knows, numbers flatter it. Audit split=test, or a fold "
        "that it did not train on."
    )
