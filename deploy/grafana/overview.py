"""What the Grafana dashboard tells. Its file is written, in the folder deploy, by

    python -m grafana.overview > ../helm/shortstack/files/overview.json

Standard library only. A test holds the file against this source, and another asks a real Prometheus every query.

``or on() vector(0)`` makes a 0 of what has no series while all is well: a counter of errors begins with the first one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from grafana.panels import Panel, Query, dashboard

__all__ = ["ROWS", "document"]

STEP: Final = "[$__rate_interval]"
_OURS: Final = "(.+-)?(ingestion|formatting|assembly|training|serving|gateway|inference)|server(-[0-9a-f]+)?"
"""Jobs of ours: a component, or the Service of one, as a monitor without a job label has it."""
_ACTIVE: Final = "starting|waiting|running|exporting"
_CHAT: Final = "/v1/chat/completions|/v1/completions|/chat"
_NONE: Final = " or on() vector(0)"

RED_FROM_ONE: Final = ((None, "green"), (1.0, "red"))


def _number(title: str, told: str, expr: str, **more: Any) -> Panel:
    return Panel(title, told, [Query(expr)], **{"kind": "stat", "width": 3, "height": 4, **more})


def _bars(title: str, told: str, expr: str, *labels: str, **more: Any) -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    return Panel(title, told, [Query(expr, legend)], **{"kind": "bargauge", **more})


def _quantiles(histogram: str, selector: str = "{}", *, by: str = "") -> list[Query]:
    """Median and 95th percentile; not a number (a gap in the line) while nothing is counted."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rate = f"sum by ({labels}) (rate({histogram}_bucket{selector}{STEP}))"
    return [Query(f"histogram_quantile({q}, {rate})", f"{round(q * 100)} %{legend}") for q in (0.5, 0.95)]


def _rate(counter: str, by: str, selector: str = "{}", *, zero: bool = False) -> Query:
    return Query(f"sum by ({by}) (rate({counter}{selector}{STEP})){_NONE if zero else ''}", f"{{{{{by}}}}}")


_REQUESTS: Final = f"sum(rate(shortstack_http_seconds_count{{}}{STEP}))"
_FAILED: Final = f'sum(rate(shortstack_http_seconds_count{{status=~"5.."}}{STEP}))'
_YES_NO: Final = {"0": ("no", "red"), "1": ("yes", "green")}

NOW: Final = (
    _number(
        "Services ready",
        "Services whose every part can serve. Six of them, and more where one has replicas.",
        "sum(shortstack_ready{})",
    ),
    _number(
        "Down or not ready",
        "Targets that do not answer, and services that say they are not ready. Which: row Health.",
        f'(count(up{{job=~"{_OURS}"}} == 0) or vector(0)) + (count(shortstack_ready{{}} == 0) or vector(0))',
        steps=RED_FROM_ONE,
    ),
    _number(
        "Messages behind",
        "What ingestion and formatting have not handled yet. Growing for minutes: add replicas of formatting.",
        "sum(shortstack_consumer_lag{})",
        steps=((None, "green"), (100.0, "yellow"), (1000.0, "red")),
    ),
    _number(
        "Runs going on",
        "Runs with an attempt under way.",
        f'sum(shortstack_runs{{state=~"{_ACTIVE}"}})',
        steps=((None, "text"), (1.0, "blue")),
    ),
    _number(
        "Models served",
        "Bases and fine-tuned models that take traffic.",
        'sum(shortstack_models{state="served"})',
        steps=((None, "red"), (1.0, "green")),
    ),
    _number("Requests", "At the gateway, all routes.", f"{_REQUESTS} or vector(0)", unit="reqps"),
    _number(
        "Failing",
        "Share of the gateway's requests that were answered 5xx.",
        f"({_FAILED} or vector(0)) / (({_REQUESTS} > 0) or vector(1))",
        unit="percentunit",
        steps=((None, "green"), (0.01, "yellow"), (0.05, "red")),
    ),
    _number(
        "First token, 95 %",
        "19 of 20 answers begin within this time. Idle when nothing was asked.",
        _quantiles("shortstack_first_token_seconds")[1].expr,
        unit="s",
        steps=((None, "green"), (2.0, "yellow"), (10.0, "red")),
    ),
)

RECORDS: Final = (
    Panel(
        "Items read by ingestion",
        "Items of sources a second: used, or rejected because they could not be read.",
        [_rate("shortstack_items_total", "fate")],
        unit="suffix:/s",
    ),
    Panel(
        "Records through formatting",
        "Records a second by verdict. Failed ones hold the dataset until `datasets accept`.",
        [_rate("shortstack_records_total", "verdict")],
        unit="suffix:/s",
    ),
    Panel(
        "Records assembled",
        "Records a second by fate. A dataset is assembled in one go, so this comes in peaks.",
        [_rate("shortstack_assembled_records_total", "fate")],
        unit="suffix:/s",
    ),
    _bars(
        "Not kept, by step and reason",
        "Since formatting was started: the ten commonest reasons. One dataset's: `shortstack datasets report NAME`.",
        f'topk(10, sum by (reason) (shortstack_records_total{{reason!=""}})){_NONE}',
        "reason",
    ),
    _bars(
        "Datasets by state",
        "Held: rejected too much, waits for `datasets accept`. Stalled: batches are missing, `datasets retry`.",
        'sum by (state) (shortstack_datasets{state!="unspecified"})',
        "state",
    ),
    Panel(
        "Messages behind",
        "Consumer lag, over all partitions of each group.",
        [Query("sum by (job) (shortstack_consumer_lag{})", "{{job}}")],
    ),
    Panel(
        "Publications",
        "Requests a minute by outcome: everything (new), accept (known records, perhaps a new wish), failed, refused.",
        [Query(f"60 * sum by (outcome) (rate(shortstack_publications_total{{}}{STEP}))", "{{outcome}}")],
        unit="suffix:/min",
        width=12,
    ),
    Panel(
        "Time to handle a message",
        "Median and 95 % over all messages of a topic; for formatting a message is a batch of records.",
        _quantiles("shortstack_handle_seconds", by="topic"),
        unit="s",
        width=12,
    ),
)

TRAINING: Final = (
    Panel(
        "Training loss",
        "Newest loss of the eight newest runs; an ended run keeps its last. Not falling: learning rate or data.",
        [Query("max by (dataset, run) (shortstack_train_loss{})", "{{dataset}} {{run}}")],
        width=12,
        height=8,
        extra={"decimals": 3},
    ),
    Panel(
        "Trained tokens",
        "Tokens a second by run; 0 once it has ended. 0 in mid-run: the attempt is starting, waiting or stuck.",
        [Query("max by (dataset, run) (shortstack_train_tokens_per_second{})", "{{dataset}} {{run}}")],
        unit="suffix:tokens/s",
        width=12,
        height=8,
    ),
    _bars(
        "Progress of runs",
        "Optimizer steps done, of those to do.",
        "max by (dataset, run) (shortstack_train_step{}) / max by (dataset, run) (shortstack_train_max_steps{})",
        "dataset",
        "run",
        unit="percentunit",
        extra={"min": 0, "max": 1},
    ),
    _bars(
        "Runs by state",
        "Waiting: the cluster has no room for its pod, `shortstack runs show JOB` has the scheduler's words.",
        'sum by (state) (shortstack_runs{state!="unspecified"})',
        "state",
    ),
    _bars(
        "Jobs by state",
        "A job is a wish; equal wishes share a run.",
        'sum by (state) (shortstack_jobs{state!="unspecified"})',
        "state",
    ),
    Panel(
        "Optimizer steps",
        "Steps a minute over all runs.",
        [Query(f"60 * sum(rate(shortstack_train_steps_total{{}}{STEP}))", "steps")],
        unit="suffix:/min",
        width=16,
    ),
    _number(
        "Attempts that broke off",
        "Since the training service was started; each is followed by another one, up to a limit.",
        "sum(shortstack_broken_attempts_total{})",
        width=8,
        height=7,
        steps=((None, "green"), (1.0, "yellow"), (4.0, "red")),
    ),
)

SERVING: Final = (
    _bars(
        "Models by state",
        "Refused: it failed the contract test or no server can hold it; `shortstack models list` says why.",
        'sum by (state) (shortstack_models{state!="unspecified"})',
        "state",
    ),
    _bars(
        "Contract tests",
        "Proofs that a server answers as the trained model did, since serving was started.",
        "sum by (outcome) (shortstack_contract_tests_total{})",
        "outcome",
    ),
    _number(
        "Time to roll out",
        "Mean from a trained model to one that takes traffic, since serving was started; 0 before the first.",
        "sum(shortstack_rollout_seconds_sum{}) / ((sum(shortstack_rollout_seconds_count{}) > 0) or vector(1))",
        unit="s",
        width=8,
        height=7,
    ),
    Panel(
        "Generated tokens",
        "Tokens a second of each model server, as they are counted: at the end of an answer.",
        [
            Query(
                f"sum by (job, pod) (rate(tgi_request_generated_tokens_sum{{}}{STEP})){_NONE}",
                "{{job}} {{pod}}",
            )
        ],
        unit="suffix:tokens/s",
    ),
    Panel(
        "Requests to model servers",
        "Requests a second, and those that failed. overloaded: add servers; generation: read the server's log.",
        [
            Query(f"sum(rate(tgi_request_count{{}}{STEP})){_NONE}", "all"),
            Query(f"sum by (err) (rate(tgi_request_failure{{}}{STEP})){_NONE}", "failed {{err}}"),
        ],
        unit="reqps",
    ),
    Panel(
        "Waiting and in the batch",
        "A queue that does not empty: the server has no row free, add servers or raise its batch.",
        [
            Query(f"sum(tgi_queue_size{{}}){_NONE}", "waiting"),
            Query(f"sum(tgi_batch_current_size{{}}){_NONE}", "in the batch"),
        ],
    ),
    Panel(
        "Server: queue and prefill",
        "Median time until a server has read the prompt: its share of the first token.",
        [
            Query(
                f"histogram_quantile(0.5, sum by (le) (rate(tgi_request_queue_duration_bucket{{}}{STEP}))) + "
                "histogram_quantile(0.5, sum by (le) "
                f'(rate(tgi_batch_inference_duration_bucket{{method="prefill"}}{STEP})))',
                "50 %",
            )
        ],
        unit="s",
        width=12,
    ),
    Panel(
        "Server: time per token",
        "Mean time per token of a request, its median and 95 %.",
        _quantiles("tgi_request_mean_time_per_token_duration"),
        unit="s",
        width=12,
    ),
)

GATEWAY: Final = (
    Panel(
        "Requests by route",
        "Requests a second.",
        [_rate("shortstack_http_seconds_count", "route")],
        unit="reqps",
    ),
    Panel(
        "Requests by status",
        "Requests a second. 499: the client left before its reply; 429: a model server is full; 503: none answers.",
        [_rate("shortstack_http_seconds_count", "status")],
        unit="reqps",
    ),
    Panel(
        "Errors",
        "Requests a second answered 429 or 5xx, and answers that broke off after their first token.",
        [
            Query(
                f'sum by (route, status) (rate(shortstack_http_seconds_count{{status=~"429|5.."}}{STEP})){_NONE}',
                "{{status}} {{route}}",
            ),
            Query(f'sum(rate(shortstack_answers_total{{outcome="broken off"}}{STEP}))', "broken off"),
        ],
        unit="reqps",
        steps=RED_FROM_ONE,
    ),
    Panel(
        "Time to the first token",
        "From the request's parsing to the first token, over all models.",
        _quantiles("shortstack_first_token_seconds"),
        unit="s",
    ),
    Panel(
        "Time to the whole answer",
        "Chats and completions, to the last byte of a stream.",
        _quantiles("shortstack_http_seconds", f'{{route=~"{_CHAT}"}}'),
        unit="s",
    ),
    Panel(
        "Tokens",
        "Tokens a second: of prompts, and generated.",
        [_rate("shortstack_chat_tokens_total", "direction")],
        unit="suffix:tokens/s",
    ),
    Panel(
        "Tokens by model",
        "Generated tokens a second of each model that answers.",
        [_rate("shortstack_chat_tokens_total", "model", '{direction="completion"}')],
        unit="suffix:tokens/s",
        width=12,
    ),
    _bars(
        "Routes by state",
        "Models as the gateway knows them. With serving away it goes on with those last told.",
        "sum by (state) (shortstack_routes{})",
        "state",
        width=12,
    ),
)

HEALTH: Final = (
    Panel(
        "Answers",
        "Whether Prometheus reaches each service.",
        [Query(f'min by (job) (up{{job=~"{_OURS}"}})', "{{job}}")],
        kind="state-timeline",
        mappings=_YES_NO,
        width=12,
    ),
    Panel(
        "Ready",
        "Whether every part of it is ready; what it waits for is on its /readyz and in its log.",
        [Query("min by (job) (shortstack_ready{})", "{{job}}")],
        kind="state-timeline",
        mappings=_YES_NO,
        width=12,
    ),
    Panel(
        "Since something last moved",
        "Beyond 120 s (SHORTSTACK_LIVENESS_S) a service counts as stuck and is started again.",
        [Query("max by (job) (shortstack_last_progress_seconds{})", "{{job}}")],
        unit="s",
        steps=((None, "green"), (60.0, "yellow"), (120.0, "red")),
    ),
    Panel(
        "Waits and retries",
        "Times a minute that Kafka, the object store or a server was away and is tried again.",
        [
            Query(f"60 * sum by (job, part) (rate(shortstack_waits_total{{}}{STEP})){_NONE}", "{{job}} {{part}}"),
            Query(f"60 * sum by (topic) (rate(shortstack_retries_total{{}}{STEP})){_NONE}", "retried {{topic}}"),
        ],
        unit="suffix:/min",
    ),
    Panel(
        "gRPC errors",
        "Calls a second between services that were answered with an error.",
        [
            Query(
                f'sum by (method, code) (rate(shortstack_rpc_seconds_count{{code!="OK"}}{STEP})){_NONE}',
                "{{code}} {{method}}",
            )
        ],
        unit="reqps",
    ),
    _bars(
        "Dead letters",
        "Messages set aside since their service was started. Each has its reason and remedy in its headers.",
        f"sum by (topic) (shortstack_dead_letters_total{{}}){_NONE}",
        "topic",
        steps=RED_FROM_ONE,
    ),
    _bars(
        "Free storage",
        "Where each service keeps the object store, or its folder if that is remote. Kafka's volume is its own.",
        "min by (job) (shortstack_storage_free_bytes{})",
        "job",
        unit="bytes",
        steps=((None, "red"), (2.0**30, "yellow"), (10 * 2.0**30, "green")),
    ),
    Panel(
        "Rebalances",
        "Changes a minute of who holds which partition. Steady ones: a worker dies again and again.",
        [Query(f"60 * sum by (job) (rate(shortstack_rebalances_total{{}}{STEP}))", "{{job}}")],
        unit="suffix:/min",
    ),
    Panel(
        "Memory",
        "Resident memory of each service process, without its children.",
        [Query(f'sum by (job, pod) (process_resident_memory_bytes{{job=~"{_OURS}"}})', "{{job}} {{pod}}")],
        unit="bytes",
    ),
    Panel(
        "Processor",
        "Cores used by each service process, without its children.",
        [Query(f'sum by (job, pod) (rate(process_cpu_seconds_total{{job=~"{_OURS}"}}{STEP}))', "{{job}} {{pod}}")],
    ),
    Panel(
        "Up for",
        "Time since each process began. A saw's teeth: it is started again and again.",
        [Query(f'time() - max by (job, pod) (process_start_time_seconds{{job=~"{_OURS}"}})', "{{job}} {{pod}}")],
        unit="s",
    ),
)

ROWS: Final[dict[str, Sequence[Panel]]] = {
    "Now": NOW,
    "Records": RECORDS,
    "Training": TRAINING,
    "Serving": SERVING,
    "Gateway": GATEWAY,
    "Health": HEALTH,
}


def document() -> str:
    """The file's text."""
    return json.dumps(dashboard(ROWS), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
