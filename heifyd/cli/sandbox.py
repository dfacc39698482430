"""``heifyd sandbox``: a local Heify to rehearse against."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heifyd.cli.explained import Explained

if TYPE_CHECKING:
    from heifyd.sandbox import Edition


@click.command(
    "sandbox",
    cls=Explained,
    short_help="Run a local Heify to rehearse against.",
    exits={0: "ended by Ctrl-C or SIGTERM", 1: "it cannot listen there, or a SPEC is none", 2: None},
    examples={
        "heifyd sandbox --data ./heify": "keep what is uploaded; then api.base_url: http://127.0.0.1:8800",
        "heifyd sandbox --fail '402 for 30s' --fail 'put reset x3'": "out of minutes at first, then a bad line",
        'curl -d \'{"spec": "503 x5"}\' http://127.0.0.1:8800/_sandbox/faults': "fail while it runs",
    },
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8800,
    show_default=True,
    metavar="PORT",
    help="Where to listen; 0 takes a free port.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), help="Keep uploads here; otherwise they go at the end."
)
@click.option("--api-key", help="The key to ask for.")
@click.option("--configuration", "configurations", multiple=True, metavar="ID=TAG", help="A configuration to know.")
@click.option("--evaluator", "evaluators", multiple=True, metavar="ID=TAG", help="An evaluator to know.")
@click.option("--participant", "participants", multiple=True, metavar="ID=TAG", help="A participant to know.")
@click.option("--accept-any-id", is_flag=True, help="Know every id.")
@click.option("--no-rate-limit", is_flag=True, help="Answer no 429.")
@click.option("--edition", type=click.Choice(["current", "2023", "v2"]), default="current", show_default=True,
              help="What upload URLs look like and sign.")  # fmt: skip
@click.option("--url-lifetime", default=300, show_default=True, help="Seconds an upload URL lives.")
@click.option(
    "--fail", "faults", multiple=True, metavar="SPEC", help="Fail on demand, such as '402 for 30s' or 'put reset x3'."
)
def command(
    port: int,
    host: str,
    data: Path | None,
    api_key: str | None,
    configurations: tuple[str, ...],
    evaluators: tuple[str, ...],
    participants: tuple[str, ...],
    accept_any_id: bool,
    no_rate_limit: bool,
    edition: "Edition",
    url_lifetime: int,
    faults: tuple[str, ...],
) -> int:
    """Run a local Heify until Ctrl-C: its API, its storage, its limits and its errors.

    Point `api.base_url` at it. GET /_sandbox/transcriptions shows what it has.

    A SPEC is [WHERE] WHAT [xN | for DURATION]. A word that is none is answered with all that there are:

    \b
    WHERE  request-upload-url, put, get-transcription, list, api or all
    WHAT   a status, an error of S3's, or such as reset, stall, drip
    """  # noqa: D301 (the control character is what tells click not to wrap)
    from heifyd.sandbox import API_KEY, RateLimit, Sandbox, serve

    def ready(url: str) -> None:
        click.echo(f"A local Heify answers at {url} (API key: {api_key or API_KEY}). Ctrl-C ends it.")

    with nullcontext(data) if data else tempfile.TemporaryDirectory(prefix="heifyd-sandbox-") as directory:
        sandbox = Sandbox(
            Path(directory),
            port=port,
            host=host,
            api_key=api_key or API_KEY,
            configurations=_tags(configurations),
            evaluators=_tags(evaluators),
            participants=_tags(participants),
            accept_any_id=accept_any_id,
            rate_limit=None if no_rate_limit else RateLimit(),
            edition=edition,
            url_lifetime_s=url_lifetime,
            faults=faults,
        )
        serve(sandbox, on_ready=ready)
    return 0


def _tags(given: tuple[str, ...]) -> dict[str, str] | None:
    """Read ID=TAG options; None where there are none, for the sandbox's own."""
    return {each.partition("=")[0].lower(): each.partition("=")[2] for each in given} or None
