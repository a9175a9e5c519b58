"""Image files of requests, decoded in processes that end when they take too long or too much."""

from __future__ import annotations

import asyncio
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from counterray.data.pixels import Rejected
from serve.decoding import DecoderContext, Limits, decode_image, start
from serve.problems import ProblemError, problem_of
from serve.settings import UploadSettings


class Decoders:
    """Processes that decode images; they start when first needed, and end with `close` or with this one.

    Args:
        settings: What an upload may be, and take.
    """

    def __init__(self, settings: UploadSettings) -> None:
        self.settings = settings
        self._limits = Limits(settings.most_pixels, settings.decode_seconds, settings.decode_memory)
        self._pool: ProcessPool | None = None
        # Who waits does so here: a request that goes away before its turn costs no process.
        self._places = asyncio.Semaphore(settings.workers)

    async def decode(self, file: bytes | str, size: int) -> NDArray[np.uint8]:
        """Grey values ``[size, size]`` of a PNG, JPEG or DICOM file, or of its base64.

        Raises:
            ProblemError: If it is too large, something else, damaged, no radiograph, or cannot be decoded
                within the limits.
        """
        self._check_bytes(file)
        seconds = self.settings.decode_seconds
        async with self._places:
            future = self.start().schedule(decode_image, (file, size, self._limits), timeout=seconds)
            try:
                return await asyncio.wrap_future(future)
            except Rejected as error:
                raise problem_of(error, doing="decode an image") from None
            except TimeoutError:
                raise ProblemError(
                    "too-large",
                    f"Decoding the image takes more than uploads.decode_seconds = {seconds:g}.",
                ) from None
            except ProcessExpired:
                raise ProblemError("unreadable-image", "The image's decoder broke down over it.") from None
            except BrokenProcessPool as error:
                raise ProblemError("unavailable", "The image decoders have to start again.") from error

    def start(self) -> ProcessPool:
        """The processes, started if there are none, or if they broke down."""
        if self._pool is None or not self._pool.active:
            self.close()
            self._pool = ProcessPool(self.settings.workers, initializer=start, context=DecoderContext())
            assert self._pool.active  # which starts it
        return self._pool

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None

    def _check_bytes(self, file: bytes | str) -> None:
        most = self.settings.most_bytes
        size = len(file) * 3 // 4 if isinstance(file, str) else len(file)
        if size > most + (100 if isinstance(file, str) else 0):  # The head of a data URI.
            raise ProblemError("too-large", f"The image file has {size} bytes; the limit is {most} bytes.")
