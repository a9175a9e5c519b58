"""Where studies come from: one file a source, and the one list of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from counterray.data.sources.base import Listing, Source
from counterray.data.sources.chexpert import CheXpert
from counterray.data.sources.covid_cxr import CovidCxr
from counterray.data.sources.dicom_folder import DicomFolder
from counterray.data.sources.files import SourceError
from counterray.data.sources.iu_xray import IuXray
from counterray.data.sources.mimic_cxr import MimicCxr
from counterray.data.sources.nih_cxr14 import NihCxr14
from counterray.data.sources.padchest import PadChest
from counterray.data.sources.phantom import Phantom
from counterray.data.sources.table import Table

AnySource = Annotated[
    Phantom | NihCxr14 | CovidCxr | CheXpert | MimicCxr | PadChest | IuXray | DicomFolder | Table,
    Field(discriminator="name"),
]
"""The configuration of any source; ``name`` says which."""

__all__ = ["AnySource", "Listing", "Source", "SourceError"]
