"""The Grafana dashboard: as its source has it, well laid out, and asking for nothing that is not declared.

That a real Prometheus has an answer to every query is seen in tests/e2e/test_monitoring.py.
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana.overview import document

from shortstack.core.metrics import metrics_table
from shortstack.inference.metrics import Metrics as ServerMetrics
from shortstack.local.ports import PortPlan
from shortstack.local.services import SERVICES
from shortstack.messages.v1 import dataset_pb2 as ds
from shortstack.messages.v1 import serving_pb2 as sv
from shortstack.messages.v1 import training_pb2 as tr

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "helm" / "shortstack" / "files" / "overview.json"
BOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SELECTOR = re.compile(r"\b([a-z_]+)\{([^{}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
BY_PROMETHEUS = {"job", "namespace", "pod", "instance"}
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"}
PARTS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
TGI_PARTS = {**PARTS, "counter": ("",), "summary": ("", "_sum", "_count")}


def samples() -> dict[str, set[str] | None]:
    """Sample name → its own labels; None where they are not declared."""
    found: dict[str, set[str] | None] = {"up": set(), **{name: set() for name in PROCESS}}
    for metric in metrics_table():
        for part in PARTS[metric.kind]:
            found[metric.name + part] = {*metric.labels, *(["le"] if part == "_bucket" else [])}
    for theirs in ServerMetrics(1024, 2048).all():
        for part in TGI_PARTS[theirs.kind]:
            found[theirs.name + part] = None
    return found


def test_the_file_is_as_its_source_has_it() -> None:
    remedy = "run `python -m grafana.overview > ../helm/shortstack/files/overview.json` in deploy"
    assert FILE.read_text(encoding="utf-8") == document(), remedy


def test_grafana_finds_what_it_needs() -> None:
    assert BOARD["uid"] == "shortstack-overview"
    assert BOARD["schemaVersion"] >= 38
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert all(variables[name]["allValue"] == ".*" for name in ("namespace", "job"))
    used = set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps([panel["targets"] for panel in PANELS])))
    assert used == set(variables)


def test_numbers_and_titles_are_given_once() -> None:
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Now", "Records", "Training", "Serving", "Gateway", "Health"]
    for panel in PANELS:
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)


def test_no_panel_lies_on_another() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        across = range(place["x"], place["x"] + place["w"])
        return {(x, y) for x in across for y in range(place["y"], place["y"] + place["h"])}

    for one, other in combinations(BOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_says_what_it_shows_in_which_unit_and_when_it_is_bad(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    steps = [step["value"] for step in defaults["thresholds"]["steps"]]
    assert steps[0] is None
    assert steps[1:] == sorted(steps[1:])
    assert panel["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize(("title", "expr"), QUERIES)
def test_a_query_names_declared_metrics_and_labels_alone(title: str, expr: str) -> None:
    known = samples()
    named = SELECTOR.findall(expr)
    assert named, title
    labels: set[str] = set()
    free = False
    for name, inside in named:
        assert name in known, f"{title}: {name} is not declared"
        own = known[name]
        matched = {label for label, _, _ in MATCHER.findall(inside)}
        assert {"namespace", "job"} <= matched, f"{title}: the choice of namespace and job does not reach {name}"
        if own is None:
            free = True
        else:
            assert matched <= own | BY_PROMETHEUS, (title, name)
            labels |= own
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(", ")}
    assert free or grouped <= labels | BY_PROMETHEUS, (title, grouped)


def test_no_metric_of_ours_is_named_without_a_selector() -> None:
    for title, expr in QUERIES:
        bare = re.findall(r"\b(?:shortstack|tgi|process)_\w+\b(?!\{)", re.sub(r'"[^"]*"', '""', expr))
        assert bare == [], title


@pytest.mark.parametrize(
    ("metric", "prefix", "states"),
    [
        ("shortstack_runs", "RUN_STATE_", tr.RunState.keys()),
        ("shortstack_jobs", "JOB_STATE_", tr.JobState.keys()),
        ("shortstack_datasets", "DATASET_STATE_", ds.DatasetState.keys()),
        ("shortstack_models", "MODEL_STATE_", sv.ModelState.keys()),
    ],
)
def test_states_in_queries_are_states(metric: str, prefix: str, states: list[str]) -> None:
    known = {state.removeprefix(prefix).lower() for state in states}
    named = {
        value
        for _, expr in QUERIES
        for name, inside in SELECTOR.findall(expr)
        if name == metric
        for label, _, values in MATCHER.findall(inside)
        if label == "state"
        for value in values.split("|")
    }
    assert named
    assert named <= known


def test_what_an_operator_asks_first_is_there() -> None:
    named = {name for _, expr in QUERIES for name, _ in SELECTOR.findall(expr)}
    assert named >= {
        "shortstack_items_total",
        "shortstack_records_total",
        "shortstack_assembled_records_total",
        "shortstack_consumer_lag",
        "shortstack_runs",
        "shortstack_train_loss",
        "shortstack_train_tokens_per_second",
        "shortstack_http_seconds_count",
        "shortstack_first_token_seconds_bucket",
        "shortstack_chat_tokens_total",
        "shortstack_answers_total",
        "tgi_request_count",
        "tgi_request_failure",
    }


def test_prometheus_looks_where_a_stack_on_one_machine_listens() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {service: [f"127.0.0.1:{PortPlan().http(service)}"] for service in SERVICES}
