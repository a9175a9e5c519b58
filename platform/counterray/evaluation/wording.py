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
        "effectiveness_ratio_macro",
        "generated_f1_macro",
        "real_f1_macro",
    ),
    "Does it show the attribute that was asked for, and leave others alone?": (
        "attribute_effectiveness",
        "attribute_null",
        "attribute_real",
        "attribute_off_target",
    ),
    "Does it leave other findings alone?": ("off_target_change", "off_target_auroc"),
    "Is it still the same patient, with the same anatomy?": (
        "identity_top1",
        "identity_rank",
        "area_deviation",
    ),
    "How far is it from the exact counterfactual, and from the input?": (
        "ground_truth_error",
        "ground_truth_error_where_changed",
        "perceptual_distance",
    ),
    "Do the images look real, and are they all kinds?": (
        "frechet_distance",
        "frechet_distance_extrapolated",
        "kernel_distance",
        "precision",
        "density",
        "recall",
        "coverage",
        "niqe",
    ),
    "Does it repeat training images?": (
        "nearest_training_distance_ratio",
        "near_copies",
        "near_copy_membership",
    ),
    "Does it obey the laws of counterfactuals: change nothing when asked nothing, and undo what it did?": (
        "reconstruction_ssim",
        "reconstruction_psnr",
        "composition_error",
        "redrawing_error",
        "reversibility_error",
    ),
}
"""Question to the metrics that answer it; numbers of single findings have a table of their own."""

_WORDS = {
    "auroc": "AUROC",
    "f1": "F1",
    "frechet": "Fréchet",
    "kl": "KL",
    "niqe": "NIQE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "top1": "top-1",
}


MEANINGS = {
    "Effectiveness AUROC": "How well the judge's scores separate counterfactuals that were asked to show a "
    "finding from those that were asked not to; 1 is best, 0.5 is chance. Beside it: what the "
    "judge reaches on real images (the most that can be asked) and what doing nothing would have scored.",
    "Effectiveness ratio": "The same AUROC as a share of what the judge reaches on real images; 1 is as good "
    "as real images. “Common” counts findings that more than 5 % of the training images show, “rare” the "
    "others; each with enough images to count, and never “no finding”.",
    "Generated F1, real F1": "How often the judge's yes or no is right, with thresholds that suit real "
    "validation images; 1 is best. Images that look unlike real ones lose here even where they are told "
    "apart.",
    "Attribute effectiveness, null, real": "Share of images that the judge reads as showing the level of an "
    "attribute that was asked for, among those that had another; of images repainted without a change, and "
    "of real images, as showing their own. Attribute off-target: how much the reading of an attribute moves "
    "that was to stay, from 0 to 1.",
    "Off-target change": "Mean change of the judge's probability of findings that the edit was to leave as "
    "they were; 0 is best.",
    "Identity top-1, rank": "Whether, and at which place, the identity judge finds the own patient when it "
    "ranks all test images by likeness to the counterfactual; place 1 is best.",
    "Area deviation": "Relative difference of an organ's area from its area in the exact counterfactual, "
    "both measured by the same judge; 0 is best.",
    "Ground truth error": "Mean absolute grey value difference from the exact counterfactual, as a share of "
    "the range from black to white; 0 is best. “Where changed” counts only pixels that the exact edit "
    "changes visibly.",
    "Perceptual distance": "How differently the judge's inner layers answer to two images; 0 is equal. It is "
    "not LPIPS, whose network has seen photographs.",
    "Fréchet distance": "Distance between the counterfactuals and real images of other patients (of the "
    "validation split) as a whole, as normal distributions of the judge's features; 0 is best. FID is this "
    "with another network, and not comparable. Few images make it too large; “extrapolated” is corrected for "
    "that. A generator that changes nothing does well here: read it beside effectiveness.",
    "Kernel distance": "Another distance of this kind, right on average for any number of images; about 0, "
    "and at times below, where nothing tells the images from real ones.",
    "Precision, density": "Share of counterfactuals that lie where real images lie, and how densely: "
    "precision is at most 1, and density about 1 for real images.",
    "Recall, coverage": "Share of real images that have counterfactuals near them: low where kinds of images "
    "are never made.",
    "NIQE": "How unnatural an image's fine texture is, measured on photographs; lower is more natural. "
    "Compare it with that of the real images.",
    "Diversity: pairwise distance, feature deviation": "How much the images of a finding differ from each "
    "other in the judge's features. As a ratio to real images of that finding: 1 is as varied, below 1 the "
    "generator repeats itself.",
    "Nearest training distance ratio": "How far counterfactuals are from the training image that is nearest, "
    "of another patient, compared with unseen real images: about 1 without memory, below 1 with.",
    "Near copies, membership": "Share of counterfactuals nearer to a training image than 99 % of unseen real "
    "images are; about 1 % without memory. Membership: of those near a training or an equally likely unseen "
    "image, the share nearer to the training image; 50 % tells nothing about who was trained on.",
    "Composition error": "Mean absolute grey value difference, as a share of the range, between an "
    "image and its repainting when nothing was asked to change, after one and after several rounds.",
    "Redrawing error": "The same difference when an image is asked, in words or from a donor, for what it "
    "shows already, and is made anew; an edit adds at least this much.",
    "Reversibility error": "The same difference after an edit was done and undone.",
    "Reconstruction SSIM, PSNR": "Likeness of the repainted to the input image; higher is better.",
}


def words(name: str) -> str:
    """A snake-case name for reading: ``pleural_effusion`` becomes "Pleural effusion"."""
    parts = [_WORDS.get(part, part) for part in name.split("_")]
    return " ".join([parts[0][:1].upper() + parts[0][1:], *parts[1:]])
