"""Functions of the user's own, named ``module:function``."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from counterray.audits.classifiers.contract import ClassifierError


def imported(name: str, target: str) -> tuple[Callable[..., Any], str]:
    """The function, and the checksum of the file that it is in (of what that imports, nothing is known).

    Args:
        name: Of the classifier, for messages.
        target: Such as ``my_package.models:predict``.

    Raises:
        ClassifierError: If there is no such module or function.
    """
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may fail in any way
        raise ClassifierError(
            f"Classifier {name!r}: module {module_name!r} of {target!r} cannot be imported "
            f"({type(error).__name__}: {error}). It must be on PYTHONPATH here and on Ray's workers."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_")
        raise ClassifierError(
            f"Classifier {name!r}: {module_name} has no function {function_name!r}. It has: "
            f"{', '.join(known) or 'none'}."
        )
    file = getattr(module, "__file__", None)  # none of a built-in module
    return function, hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
