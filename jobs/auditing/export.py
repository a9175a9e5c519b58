"""The images of an audit as files, for a model that predicts where this platform is not."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from counterray.audits.classifiers.endpoint import png
from counterray.audits.classifiers.table import IMAGE_COLUMN
from counterray.storage import Location
from jobs.auditing.making import Source
from jobs.auditing.sets import ImageSet

TEMPLATE_FILE = "template.csv"


def export_images(
    target: Location, source: Source, sets: Sequence[ImageSet], *, findings: Sequence[str]
) -> int:
    """Writes ``<name>.png`` of every image, and a table with their names to copy and fill.

    The names hold no identifier of a patient or study. Images that are there already are not written again:
    a name stands for one content.

    Args:
        target: Folder.
        source: Where the images are.
        sets: Which images.
        findings: Columns of the table.

    Returns:
        Number of images.
    """
    there = set(target.files())
    names: list[str] = []
    for images in sets:
        for chunk in images.chunks:
            for view, pixels in source.read(chunk).items():
                for key, image in zip(chunk.keys(view), pixels, strict=True):
                    if not image.isfinite().all():
                        continue
                    names.append(key)
                    if f"{key}.png" not in there:
                        (target / f"{key}.png").write_bytes(png(image))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([IMAGE_COLUMN, *findings])
    writer.writerows([name, *("" for _ in findings)] for name in names)
    (target / TEMPLATE_FILE).write_bytes(buffer.getvalue().encode())
    return len(names)
