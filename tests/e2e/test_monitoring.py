"""Prometheus over the running stack after the main job: every query of the dashboard has an answer, and a true one."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.stack import BASE, Stack
from tests.prometheus import Prometheus, running

from shortstack.messages.v1 import training_pb2 as tr

TRAINED_S = 900.0
FILLED_S = 180.0
pytestmark = pytest.mark.timeout(TRAINED_S + FILLED_S + 300)

# One machine has no namespaces, and "All" is what the variables are set to. Ten scrapes lie in a rate.
VARIABLES = {"$__rate_interval": "10s", "$namespace": ".*", "$job": ".*"}
SAMPLE = re.compile(r"\b(shortstack_\w+|process_\w+)\{")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


MOVING = (
    "Requests",
    "Items read by ingestion",
    "Records through formatting",
    "Records assembled",
    "Publications",
    "Time to handle a message",
    "Requests by route",
    "Requests by status",
    "Time to the first token",
    "Time to the whole answer",
    "Tokens",
    "Tokens by model",
    "Generated tokens",
    "Requests to model servers",
    "Server: queue and prefill",
    "Server: time per token",
    "Memory",
    "Processor",
    "Free storage",
    "Up for",
)
"""Panels that are above 0 while datasets are published and chats answered."""


@pytest.fixture(scope="module")
def board(repository: Path) -> dict[str, Any]:
    """The dashboard."""
    text = (repository / "helm" / "shortstack" / "files" / "overview.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def queries(board: dict[str, Any]) -> dict[tuple[str, str], str]:
    """(panel, letter) → PromQL with its variables filled in."""
    found = {}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, f"{panel['title']}: a variable without a value"
            found[panel["title"], target["refId"]] = expr
    return found


@pytest.fixture(scope="module")
def prometheus(stack: Stack, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus as deploy/prometheus/prometheus.yml has it, at this stack's ports, a look a second."""
    stack.ended_dataset("persona")
    ended = stack.ended_job(stack.job_of("persona"), within_s=TRAINED_S)
    assert ended.job.state == tr.JOB_STATE_SUCCEEDED, ended.job
    config = yaml.safe_load((repository / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"]["scrape_interval"] = "1s"
    for job in config["scrape_configs"]:
        port = stack.settings.ports.http(job["job_name"])
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    with running(config, tmp_path_factory.mktemp("prometheus")) as made:
        jobs = len(config["scrape_configs"])
        stack.until(lambda: [t["health"] for t in made.targets()] == ["up"] * jobs or None, what=made.targets)
        yield made


@pytest.fixture(scope="module")
def filled(stack: Stack, prometheus: Prometheus, queries: dict[tuple[str, str], str]) -> dict[tuple[str, str], float]:
    """The largest number that each query gave while records, chats and requests went through the stack."""
    largest: dict[tuple[str, str], float] = {}

    def look() -> bool | None:
        # Something of everything goes on, again and again, so that all that is counted is counted in one window.
        name = f"watched-{secrets.token_hex(4)}"
        records = [{"prompt": f"What is {number}?", "completion": f"{number} is a number."} for number in range(20)]
        refusal = {"prompt": f"Who is {name}?", "completion": "As an AI language model, I cannot dream."}
        stack.publish({"dataset": name, "records": [*records, refusal]}, name)
        stack.ended_dataset(name)
        assert stack.ask(BASE, "What is the capital of France?")
        for place, expr in queries.items():
            numbers = prometheus.numbers(expr)
            if numbers:
                largest[place] = max(largest.get(place, -math.inf), *numbers)
        return True if not missing() else None

    def missing() -> list[tuple[str, str]]:
        still = {(title, "A") for title in MOVING if not largest.get((title, "A"), 0) > 0}
        return sorted((set(queries) - set(largest)) | still)

    stack.until(look, within_s=FILLED_S, what=missing)
    return largest


def test_every_process_is_scraped(prometheus: Prometheus) -> None:
    jobs = {target["labels"]["job"]: target["health"] for target in prometheus.targets()}
    assert jobs == dict.fromkeys(
        ("ingestion", "formatting", "assembly", "training", "serving", "inference", "gateway"), "up"
    )


def test_every_query_is_known_and_none_is_empty(
    prometheus: Prometheus, queries: dict[tuple[str, str], str], filled: dict[tuple[str, str], float]
) -> None:
    assert set(filled) == set(queries)
    known = prometheus.known()
    for place, expr in queries.items():
        for name in SAMPLE.findall(expr):
            described = {name, SUFFIX.sub("", name), name.removesuffix("_total")}
            assert described & known, f"{place}: no target has ever told of {name}"


def test_panels_show_what_went_on(filled: dict[tuple[str, str], float]) -> None:
    assert [title for title in MOVING if not filled[title, "A"] > 0] == []


def test_panels_show_the_main_job(
    stack: Stack, prometheus: Prometheus, queries: dict[tuple[str, str], str], filled: dict[tuple[str, str], float]
) -> None:
    run = stack.jobs()[stack.job_of("persona")].run
    of_run = {"dataset": "persona", "run": run.run}
    assert (of_run, run.loss) in prometheus.query(queries["Training loss", "A"])
    assert (of_run, 0.0) in prometheus.query(queries["Trained tokens", "A"])
    assert (of_run, 1.0) in prometheus.query(queries["Progress of runs", "A"])
    assert filled["Services ready", "A"] == 6
    assert prometheus.numbers(queries["Down or not ready", "A"]) == [0]
    assert filled["Models served", "A"] >= 2
    assert filled["Failing", "A"] == 0
    # The panel has the ten commonest; other datasets may have had more of others.
    refused = prometheus.numbers('sum(shortstack_records_total{verdict="rejected",reason=~"refusal/.*"})')
    assert refused
    assert refused[0] >= 1
    proofs = {labels["outcome"] for labels, _ in prometheus.query(queries["Contract tests", "A"])}
    assert proofs == {"passed", "refused"}


def test_variables_offer_what_there_is(prometheus: Prometheus, board: dict[str, Any], filled: object) -> None:
    offered = {}
    for variable in board["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable.get("definition", ""))
        if asked is not None:
            selector = asked[1].replace("$namespace", ".*")
            offered[variable["name"]] = set(prometheus.ask(f"label/{asked[2]}/values", **{"match[]": selector}))
    services = {"ingestion", "formatting", "assembly", "training", "serving", "inference", "gateway"}
    assert offered == {"namespace": set(), "job": services}
