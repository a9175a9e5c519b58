"""The finding vocabulary that every source is mapped to."""

from __future__ import annotations

FINDINGS = (
    "no_finding",
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_opacity",
    "lung_lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
)
"""CheXpert's fourteen observations (Irvin et al., 2019, https://arxiv.org/abs/1901.07031, table 1)."""
