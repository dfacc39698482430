"""``heifyd monitoring``: alerts for Prometheus and a dashboard for Grafana, to be put where those look for them."""

from typing import Literal

import click

_FILES = {"alerts": "alerts.yml", "dashboard": "dashboard.json"}


@click.command("monitoring", short_help="Print alerts for Prometheus or a dashboard for Grafana.")
@click.argument("what", type=click.Choice(["alerts", "dashboard"]))
def command(what: Literal["alerts", "dashboard"]) -> int:
    """Print the alerting rules for Prometheus (a file for its `rule_files`), or a dashboard to be imported by Grafana.

    Both are for the metrics that `status.listen` gives at /metrics.
    """
    from importlib import resources

    click.echo(resources.files("heifyd.observe").joinpath(_FILES[what]).read_text("utf-8"), nl=False)
    return 0
