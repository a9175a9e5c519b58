"""``python -m jobs``: lists the jobs; ``python -m jobs <job> --help`` explains one."""

from __future__ import annotations

import typer

from jobs import (
    audit,
    augment,
    cluster,
    demo,
    encode,
    evaluate,
    generate,
    ingest,
    readings,
    refine,
    reproduce,
    serve,
    submit,
    train,
)

app = typer.Typer(
    name="python -m jobs",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def listing(context: typer.Context) -> None:
    """The jobs of counterray. Every job runs on a local Ray, or on a cluster with --address."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("ingest")(ingest.main)
app.command("refine")(refine.main)
app.command("encode")(encode.main)
app.command("train")(train.main)
app.command("evaluate")(evaluate.main)
app.command("readings")(readings.main)
app.command("generate")(generate.main)
app.command("augment")(augment.main)
app.command("audit")(audit.main)
app.command("serve")(serve.main)
app.command("demo")(demo.main)
app.command("reproduce")(reproduce.main)
app.command("submit")(submit.main)
app.add_typer(cluster.app, name="cluster")

if __name__ == "__main__":
    app()
