"""What a pathology diffusion is told of a study: its refined report, its report, or its labels in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from counterray.data.study import Batch
from counterray.models.generator import Edit, EditError, edited_findings
from counterray.reports.refine import Mention, Refined, normalise
from counterray.reports.rules import RulesRefiner

PromptSource = Literal["refined_report", "report", "labels"]
"""Where prompts come from; a study without such a text has the empty prompt."""

_NORMAL = re.compile(r"\b(no|not|normal|clear|unremarkable|healthy|without)\b", re.IGNORECASE)
"""Words of which one is in every description of an image without a finding."""

_SILENT = ("no_finding",)
"""Labels that follow from the others and are never said themselves."""


def study_prompts(batch: Batch, source: PromptSource) -> list[str]:
    """A prompt for each study of ``batch``; empty where its source says nothing.

    Raises:
        ValueError: If the batch does not carry the texts.
    """
    if source == "labels":
        return label_prompts(batch.findings, batch.finding_mask, batch.finding_names)
    texts = batch.prompts if source == "refined_report" else batch.reports
    if len(texts) != len(batch):
        raise ValueError(f"A batch of {len(batch)} studies carries {len(texts)} texts; read it with reports.")
    return list(texts)


def label_prompts(findings: Tensor, known: Tensor, names: Sequence[str]) -> list[str]:
    """Labels in the words of a refined report; empty where no label is known.

    Args:
        findings: ``[B, F]`` in {0, 1}.
        known: ``[B, F]`` bool.
        names: The F findings.
    """
    return [
        _in_words([Mention(finding=n) for n, v, k in zip(names, row, mask, strict=True) if k and v == 1])
        if any(mask)
        else ""
        for row, mask in zip(findings.tolist(), known.tolist(), strict=True)
    ]


def edited_prompts(batch: Batch, edit: Edit, source: PromptSource) -> list[str]:
    """What the counterfactuals of ``batch`` should show: each study's own prompt, changed as ``edit`` says.

    What the study's text says of other findings (place and severity too) stays, or what its labels say where
    it has no text; a finding that is set to 1 takes the severity that the edit names, one that is set to 0 is
    left out. Words are brought into the normal form of refined reports, unless the generator reads reports
    as they are: it has never read a denial, and would draw what is denied.

    Raises:
        EditError: If words say nothing of any finding.
    """
    if edit.prompt:
        return [edit.prompt if source == "report" else _normal_form(edit.prompt)] * len(batch)
    set_ = edit.findings
    added = [
        Mention(finding=name, severity=edit.severity)
        for name, value in set_.items()
        if value == 1 and name not in _SILENT
    ]
    if set_.get("no_finding") == 1:
        return [_in_words(added)] * len(batch)
    own = _labelled(batch)
    if source != "labels":
        texts = study_prompts(batch, source)
        read = RulesRefiner().refine(texts)
        own = [r if text.strip() else labels for r, text, labels in zip(read, texts, own, strict=True)]
    return [
        _in_words([*(m for m in refined.mentions if m.finding not in {*set_, *_SILENT}), *added])
        for refined in own
    ]


def _normal_form(words: str) -> str:
    [refined] = RulesRefiner().refine([words])
    # Of what they cannot read, the rules say that it names nothing abnormal.
    if all(m.finding == "no_finding" for m in refined.mentions) and not _NORMAL.search(words):
        raise EditError(
            "The prompt says nothing of a finding that can be read. Write it as a radiologist would, such as "
            "'Moderate left pleural effusion.', or set findings with do."
        )
    return refined.prompt


def _labelled(batch: Batch) -> list[Refined]:
    shown = edited_findings(batch, Edit())
    return [
        normalise(
            Mention(finding=name) for name, value in zip(batch.finding_names, row, strict=True) if value == 1
        )
        for row in shown.tolist()
    ]


def _in_words(mentions: Sequence[Mention]) -> str:
    return normalise(m for m in mentions if m.finding not in _SILENT).prompt
