"""The words of a report: what its numbers ask, mean and do not say."""

from __future__ import annotations

SYNTHETIC_NOTICE = (
    "Synthetic images: the pictures called reconstruction or counterfactual were made by a model and show no "
    "real person's radiograph. They are for research, must never be read as a finding of a patient, and are "
    "not a medical device's output."
)

LIMITS = (
    "Every number that names a judge is that network's opinion, not a radiologist's, and is comparable only "
    "with numbers of the same judge (name and checksum). Judges err more on generated than on real images.",
    "A counterfactual says what the model believes would be seen. Only where the exact counterfactual is "
    "known, on simulated radiographs, has that belief been compared with the truth; on real radiographs "
    "there is none to compare with.",
    "Intervals are 95 % percentile intervals from resampling patients. They cover the choice of test "
    "patients, not the choice of the training seed, the site or the scanner.",
)

BETTER = {"higher": "↑ higher", "lower": "↓ lower", "none": "for comparison"}

QUESTIONS = {
    "Does it show the pathology that was asked for?": (
        "effectiveness_auroc_macro",
        "no_edit_auroc_macro",
        "real_auroc_macro",
    ),
    "Does it leave other findings alone?": ("off_target_change",),
    "Is it still the same patient, with the same anatomy?": (
        "identity_top1",
        "identity_rank",
        "area_deviation",
    ),
    "How far is it from the exact counterfactual?": (
        "ground_truth_error",
        "ground_truth_error_where_changed",
    ),
    "Does it obey the laws of counterfactuals: change nothing when asked nothing, and undo what it did?": (
        "reconstruction_ssim",
        "reconstruction_psnr",
        "composition_error",
        "reversibility_error",
    ),
}
_ACRONYMS = {"auroc": "AUROC", "ssim": "SSIM", "psnr": "PSNR", "kl": "KL", "top1": "top-1"}


MEANINGS = {
    "Effectiveness AUROC": "How well the judge's scores separate counterfactuals that were asked to show a "
    "finding from those that were asked not to; 1 is best, 0.5 is chance. Beside it: what the "
    "judge reaches on real images (the most that can be asked) and what doing nothing would have scored.",
    "Off-target change": "Mean change of the judge's probability of findings that the edit was to leave as "
    "they were; 0 is best.",
    "Identity top-1, rank": "Whether, and at which place, the identity judge finds the own patient when it "
    "ranks all test images by likeness to the counterfactual; place 1 is best.",
    "Area deviation": "Relative difference of an organ's area from its area in the exact counterfactual, "
    "both measured by the same judge; 0 is best.",
    "Ground truth error": "Mean absolute grey value difference from the exact counterfactual, as a share of "
    "the range from black to white; 0 is best. “Where changed” counts only pixels that the exact edit "
    "changes visibly.",
    "Composition error": "The same difference between an image and its repainting when nothing was asked to "
    "change, after one and after several rounds.",
    "Reversibility error": "The same difference after an edit was done and undone.",
    "Reconstruction SSIM, PSNR": "Likeness of the repainted to the input image; higher is better.",
}


def words(name: str) -> str:
    """A snake-case name for reading: ``pleural_effusion`` becomes "Pleural effusion"."""
    parts = [_ACRONYMS.get(part, part) for part in name.split("_")]
    return " ".join([parts[0][:1].upper() + parts[0][1:], *parts[1:]])
