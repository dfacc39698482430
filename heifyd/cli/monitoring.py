"""``heifyd monitoring``: alerts for Prometheus and a dashboard for Grafana, to be put where those look for them."""

from typing import Literal

import click

from heifyd.cli.explained import Explained

_FILES = {"alerts": "alerts.yml", "dashboard": "dashboard.json"}


@click.command(
    "monitoring",
    cls=Explained,
    short_help="Print alerts for Prometheus or a dashboard for Grafana.",
    exits={0: None, 2: None},
    examples={
        "heifyd monitoring alerts > /etc/prometheus/heifyd.yml": "then name that file among `rule_files`",
        "heifyd monitoring dashboard > heifyd.json": "then import it in Grafana",
    },
)
@click.argument("what", type=click.Choice(["alerts", "dashboard"]))
def command(what: Literal["alerts", "dashboard"]) -> int:
    """Print the alerting rules for Prometheus (a file for its `rule_files`), or a dashboard to be imported by Grafana.

    Both are for the metrics that `status.listen` gives at /metrics.
    """
    from importlib import resources

    click.echo(resources.files("heifyd.observe").joinpath(_FILES[what]).read_text("utf-8"), nl=False)
    return 0
