"""What a text-guided generator was told, and how much of it a report may show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from counterray.models.pathology_ldm.prompts import PromptSource

_WORDS: Mapping[PromptSource, str] = {
    "refined_report": "what a refiner kept of the donor's report (findings, side, place and severity)",
    "report": "the donor's report as it was written",
    "labels": "the donor's labels, put into words",
}


@dataclass(frozen=True, kw_only=True)
class TextCondition:
    """The words that stood for the donors' pathology, a text for each row of the counterfactuals.

    Attributes:
        source: Where they came from.
        prompts: The texts; empty where a donor has none.
        synthetic: Whether the studies were simulated. Only then may a report quote the texts: those of
            patients stay where they are.
    """

    source: PromptSource
    prompts: tuple[str, ...]
    synthetic: bool

    def quoted(self, row: int) -> str:
        """The row's text for reading, empty where it must not be shown."""
        if not self.synthetic:
            return ""
        return f"“{self.prompts[row]}”" if self.prompts[row] else "no words"

    @property
    def paragraph(self) -> str:
        """What the generator was told, in general words."""
        silent = sum(not prompt for prompt in self.prompts)
        missing = (
            f" {silent} of {len(self.prompts)} donors have no text, which asks for nothing." if silent else ""
        )
        hidden = "" if self.synthetic else " Texts of patients are not shown here."
        return (
            f"The generator did not see the donor's image. It read {_WORDS[self.source]}, and drew the "
            f"pathology from these words.{missing}{hidden}"
        )
