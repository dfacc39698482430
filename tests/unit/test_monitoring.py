"""The alerts and the dashboard: they know every metric that they speak of, and fire when they should."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from heifyd.ledger import FolderCounts, HoldRow
from heifyd.observe.look import Look, Subject
from heifyd.observe.metrics import Metrics
from heifyd.overview import FolderStatus, Overview
from tests.harness import need_program

PROMETHEUS_OWN = {"job", "instance", "le"}
"""Labels that Prometheus gives, or histograms have."""

ALERTS = resources.files("heifyd.observe").joinpath("alerts.yml").read_text("utf-8")
DASHBOARD: dict[str, Any] = json.loads(resources.files("heifyd.observe").joinpath("dashboard.json").read_text("utf-8"))
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]


def counted() -> tuple[Metrics, Look]:
    """Return metrics in which everything that can be counted has happened once, and a look at which nothing lacks."""
    metrics = Metrics()
    metrics.know(["/calls"])
    for event in ("settled", "done", "failed", "changed", "reopened", "vanished"):
        metrics.tell({"event": f"recording.{event}", "folder": "/calls", "total_ms": 1500})
    metrics.sent(1000)
    metrics.answered("put", "500")
    now = time.time()
    subject = Subject(Path("/var/lib/heifyd/ledger.sqlite"), ("/calls",), 4, is_running=True, since=now)
    held = HoldRow("/calls", "mapping", "mapping_refused", "no such id", "correct it", now)
    folder = FolderStatus("/calls", configured=True, counts=FolderCounts(1, 1, 1, 1, now - 60))
    seen = Overview(running=True, alive=True, ledger="", holds=[held], folders=[folder], uploads=[])
    return metrics, Look(subject, now, [held], seen, free_bytes=10**9)


def series() -> dict[str, set[str]]:
    """Return the labels of every series that /metrics can have, by its name."""
    metrics, look = counted()
    found: dict[str, set[str]] = {}
    for family in metrics.families(look):
        assert family.samples, f"{family.name} has nothing to show"
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Give every PromQL expression with the text that is shown with it."""
    for rule in RULES:
        yield rule["expr"], " ".join(rule["annotations"].values())
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["expr"], annotation["textFormat"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            yield f"sum by ({label}) ({metric})", ""


@pytest.mark.parametrize(("expression", "text"), [*queries()], ids=lambda text: text[:40])
def test_every_metric_and_label_that_is_asked_for_is_there(expression: str, text: str) -> None:
    known = series()
    names = set(re.findall(r"\b(?:heifyd|process)_\w+", re.sub(r'"[^"]*"', '""', expression)))

    assert names <= known.keys()
    assert names or "up{" in expression
    labels = PROMETHEUS_OWN.union(*(known[name] for name in names))
    for name, selector in re.findall(r"\b([a-z]\w*)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', "", selector)):
            assert label in known.get(name, set()) | PROMETHEUS_OWN, (name, label)
    for grouping in re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", expression):
        assert set(re.findall(r"\w+", grouping)) <= labels, grouping
    shown = set(re.findall(r"\$labels\.(\w+)", text)) | set(re.findall(r"\{\{(\w+)\}\}", text))
    assert shown <= labels


def test_every_alert_waits_is_graded_and_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["for"], rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "$labels.instance" in rule["annotations"]["summary"]
        assert len(rule["annotations"]["description"]) > 40


def promtool(*arguments: str | Path, told: bytes | None = None) -> str:
    run = subprocess.run(
        [need_program("promtool"), *map(str, arguments)], input=told, capture_output=True, timeout=60, check=False
    )
    said = (run.stdout + run.stderr).decode()
    assert run.returncode == 0, said
    return said


def test_prometheus_takes_the_alerts() -> None:
    with resources.as_file(resources.files("heifyd.observe").joinpath("alerts.yml")) as path:
        assert f"{len(RULES)} rules found" in promtool("check", "rules", path)


WHERE = 'job="heifyd", instance="pbx-1"'

FIRES: dict[str, tuple[dict[str, str], str, str, dict[str, str]]] = {
    # The alert: the series it is about, when it is not there yet, when it is, and the labels that it bears.
    "HeifydDown": ({f"up{{{WHERE}}}": "1x5 0x20"}, "7m", "8m", {}),
    "HeifydStuck": ({f"heifyd_stuck_threads{{{WHERE}}}": "0x5 1x20"}, "6m", "7m", {}),
    **{
        f"HeifydHeldBy{owner.capitalize()}": (
            {f'heifyd_holds{{{WHERE}, scope="/calls", owner="{owner}", reason="why"}}': "_x5 1x40"},
            f"{4 + after}m",
            f"{5 + after}m",
            {"scope": "/calls", "owner": owner, "reason": "why"},
        )
        for owner, after in (("account", 1), ("mapping", 1), ("folder", 5), ("service", 15), ("ledger", 1))
    },
    "HeifydLedgerUnreadable": ({f"heifyd_ledger_readable{{{WHERE}}}": "1x5 0x20"}, "7m", "8m", {}),
    "HeifydLedgerDiskFilling": ({f"heifyd_ledger_disk_free_bytes{{{WHERE}}}": "600e6x5 499e6x20"}, "10m", "11m", {}),
    "HeifydRecordingsFailed": (
        {
            f'heifyd_recordings_total{{{WHERE}, folder="/calls", outcome="failed"}}': "0x5 1x20",
            f'heifyd_recordings_total{{{WHERE}, folder="/calls", outcome="done"}}': "0+9x30",
        },
        "6m",
        "7m",
        {"folder": "/calls", "outcome": "failed"},
    ),
    "HeifydOldestWaitsTooLong": (
        {f'heifyd_oldest_waiting_seconds{{{WHERE}, folder="/calls"}}': "0+60x100"},
        "65m",
        "66m",
        {"folder": "/calls"},
    ),
    "HeifydUploadsNothing": (
        {
            f'heifyd_waiting_recordings{{{WHERE}, folder="/calls"}}': "3x100",
            f"heifyd_uploaded_bytes_total{{{WHERE}}}": "0+1000x10 10000x90",
        },
        "48m",
        "50m",
        {},
    ),
}


def case(named: str, series: dict[str, str], at: str, firing: list[dict[str, str]]) -> dict[str, Any]:
    samples = [
        {"labels": "ALERTS{" + ", ".join(f'{key}="{value}"' for key, value in labels.items()) + "}", "value": 1}
        for labels in firing
    ]
    return {
        "name": f"{named} at {at}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": f'ALERTS{{alertname="{named}", alertstate="firing"}}', "eval_time": at, "exp_samples": samples}
        ],
    }


def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    rules = tmp_path / "alerts.yml"
    rules.write_text(ALERTS, encoding="utf-8")
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in RULES}
    tests = []
    for named, (series, before, at, labels) in FIRES.items():
        own = {"alertname": named, "alertstate": "firing", "severity": severity[named]}
        bears = {**own, "job": "heifyd", "instance": "pbx-1", **labels}
        tests += [case(named, series, before, []), case(named, series, at, [bears])]
    absent = {"alertname": "HeifydDown", "alertstate": "firing", "severity": "critical", "job": "heifyd"}
    tests.append(case("HeifydDown", {}, "3m", [absent]))
    uploads = FIRES["HeifydUploadsNothing"][0]
    held = f'heifyd_holds{{{WHERE}, scope="everything", owner="account", reason="out_of_minutes"}}'
    tests.append(case("HeifydUploadsNothing", uploads | {held: "1x100"}, "50m", []))
    nothing_waits = f'heifyd_waiting_recordings{{{WHERE}, folder="/calls"}}'
    tests.append(case("HeifydUploadsNothing", uploads | {nothing_waits: "0x100"}, "50m", []))
    cases = tmp_path / "cases.yml"
    cases.write_text(
        yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}), encoding="utf-8"
    )

    assert "SUCCESS" in promtool("test", "rules", cases)
    assert FIRES.keys() == severity.keys(), "each alert has a case"


def test_prometheus_understands_each_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = tmp_path / "dashboard.yml"
    expressions = [
        re.sub(r"\$__(rate_)?interval", "5m", expression).replace('"$instance"', '".*"').replace('"$folder"', '".*"')
        for expression, _ in queries()
    ]
    assert not [each for each in expressions if "$" in each]
    listed = [{"record": f"query:{number}", "expr": each} for number, each in enumerate(expressions)]
    rules.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": listed}]}), encoding="utf-8")

    assert f"{len(expressions)} rules found" in promtool("check", "rules", rules)


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "text/plain; version=1.0.0; escaping=underscores"])
def test_prometheus_finds_no_fault_with_the_metrics(accept: str) -> None:
    metrics, look = counted()

    text, content_type = metrics.text(look, [], accept)

    assert content_type.startswith("text/plain")
    assert promtool("check", "metrics", told=text).strip() == ""
    assert b"_created" not in text
