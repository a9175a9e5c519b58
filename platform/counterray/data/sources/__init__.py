"""Where studies come from: one file a source, and the one list of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from counterray.data.sources.base import Listing, Source, SourceError
from counterray.data.sources.nih_cxr14 import NihCxr14
from counterray.data.sources.phantom import Phantom

AnySource = Annotated[NihCxr14 | Phantom, Field(discriminator="name")]
"""The configuration of any source; ``name`` says which."""

__all__ = ["AnySource", "Listing", "Source", "SourceError"]
