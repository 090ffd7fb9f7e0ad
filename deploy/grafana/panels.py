"""How a panel becomes Grafana's JSON: queries, places, colours. What the panels tell stands in `overview`.

In an expression ``{}`` stands for the choice of namespace and job, ``{x="y"}`` for that and more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Panel", "Query", "dashboard"]

WIDTH: Final = 24
_CHOSEN: Final = 'namespace=~"$namespace",job=~"$job"'
_BAD: Final = ".*(failed|refused|held|stalled|broken off|dlq).*"
"""Names of lines that are red."""
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One line, or family of lines, of a panel.

    Attributes:
        expr: PromQL, with ``{}`` for the selector.
        legend: Grafana's template of the name.
    """

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        """The expression as Grafana sends it, but for its variables."""
        return re.sub(r"\{(?!\{)([^{}]*)\}", lambda m: "{" + ",".join(filter(None, (_CHOSEN, m[1]))) + "}", self.expr)


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title, help: what it is called, and what it tells.
        queries: at least one.
        kind: Grafana's panel type.
        unit: Grafana's unit.
        width: of the 24 columns.
        height: in grid rows.
        steps: thresholds, from the lowest (None) up.
        mappings: value → (text, colour).
        extra: of the field's defaults.
    """

    title: str
    help: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 7
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),)
    mappings: dict[str, tuple[str, str]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


_REDUCED: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCED,
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    },
    "bargauge": {
        "reduceOptions": _REDUCED,
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
    },
    "state-timeline": {
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "never",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
    },
}
_CUSTOM: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": False},
    "state-timeline": {"lineWidth": 0, "fillOpacity": 80},
}


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if panel.mappings:
        options = {value: {"text": text, "color": colour} for value, (text, colour) in panel.mappings.items()}
        found.append({"type": "value", "options": options})
    if panel.kind == "stat":
        found.append({"type": "special", "options": {"match": "null+nan", "result": {"text": "idle"}}})
    return found


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    now = panel.kind in {"stat", "bargauge"}
    steps = [{"color": colour, "value": value} for value, colour in panel.steps]
    lines = panel.kind == "timeseries"
    defaults = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if lines else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": _mappings(panel),
        "noValue": "nothing yet",
        "custom": _CUSTOM.get(panel.kind, {}),
        **({"min": 0} if lines else {}),
        **panel.extra,
    }
    red = [{"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}}]
    marked = lines or panel.kind == "bargauge"
    overrides = [{"matcher": {"id": "byRegexp", "options": f"/{_BAD}/"}, "properties": red}] if marked else []
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": _SOURCE,
            "expr": query.promql,
            "legendFormat": query.legend or "__auto",
            "instant": now,
            "range": not now,
        }
        for place, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": _OPTIONS[panel.kind],
    }


def _laid_out(rows: Mapping[str, Sequence[Panel]]) -> list[dict[str, Any]]:
    """Rows from top to bottom, panels from left to right; a line is as high as its highest panel."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in rows.items():
        row = {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
        made.append({**row, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        y, x, high = y + 1, 0, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y, high = 0, y + high, 0
            made.append(_panel(panel, len(made) + 1, x, y))
            x, high = x + panel.width, max(high, panel.height)
        y += high
    return made


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice among a label's values. "All" also matches what has no such label: one machine has no namespaces."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def dashboard(rows: Mapping[str, Sequence[Panel]]) -> dict[str, Any]:
    """The dashboard of ``rows``, from top to bottom, for Grafana 10 and newer."""
    everything = '{__name__=~"shortstack_ready|tgi_request_count",namespace=~"$namespace"}'
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "shortstack-overview",
        "title": "Shortstack: overview",
        "description": "From a record to an answer: records, training, serving, gateway, and the health of it all.",
        "tags": ["shortstack"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {**source, "refresh": 1, "current": {}},
                _variable("namespace", "Namespace", "label_values(shortstack_ready, namespace)"),
                _variable("job", "Job", f"label_values({everything}, job)"),
            ]
        },
        "panels": _laid_out(rows),
    }
