"""``heifyd schema``: the configuration's JSON Schema."""

import json

import click


@click.command("schema", short_help="Print the JSON Schema of the configuration.")
def command() -> int:
    """Print the JSON Schema of the configuration, for editors that complete and check it."""
    from heifyd import config

    click.echo(json.dumps(config.json_schema(), indent=2))
    return 0
