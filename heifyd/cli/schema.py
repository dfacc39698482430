"""``heifyd schema``: the configuration's JSON Schema."""

import json

import click

from heifyd.cli.explained import Explained


@click.command(
    "schema",
    cls=Explained,
    short_help="Print the JSON Schema of the configuration.",
    exits={0: None, 2: None},
    examples={
        "heifyd schema > heifyd.schema.json": "for an editor that completes and checks YAML; then, as a first line "
        "of the configuration: # yaml-language-server: $schema=heifyd.schema.json",
    },
)
def command() -> int:
    """Print the JSON Schema of the configuration, for editors that complete and check it."""
    from heifyd import config

    click.echo(json.dumps(config.json_schema(), indent=2))
    return 0
