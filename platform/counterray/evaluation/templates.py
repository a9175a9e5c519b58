"""The Jinja templates of this package's pages."""

from __future__ import annotations

import jinja2


def page_templates() -> jinja2.Environment:
    """The templates; every value is escaped, and a name that a page was not given is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("counterray", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
