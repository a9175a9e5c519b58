"""Score the forms that readers of a blinded reading set have filled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.common import AsJson, run


def main(
    key: Annotated[Path, typer.Option(help="reading_set_key.csv of the evaluation.", dir_okay=False)],
    form: Annotated[list[Path], typer.Option(help="A reader's filled form.csv. Repeatable.", dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Score the forms that readers of a blinded reading set have filled."""

    def work() -> Mapping[str, Any]:
        from counterray.config import ConfigError
        from counterray.evaluation.metric import as_json as plain
        from counterray.evaluation.reading_set import score_reading_set

        missing = [path for path in (key, *form) if not path.is_file()]
        if missing:
            raise ConfigError(f"There is no file {missing[0]}; evaluate --set reading_set=<items> makes it.")
        forms = {f"reader {number}": path.read_bytes() for number, path in enumerate(form, start=1)}
        try:
            return {"metrics": plain(score_reading_set(forms, key.read_bytes()))}
        except ValueError as error:
            raise ConfigError(str(error)) from error

    run(work, as_json=as_json, summary=_summary)


def _summary(result: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{name:44s} {_shown(m['value'])} ({_shown(m['low'])} to {_shown(m['high'])}), n {m['n']}; "
        f"{m['note']}"
        for name, m in result["metrics"].items()
    )


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
