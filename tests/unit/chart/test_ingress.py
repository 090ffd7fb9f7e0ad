"""The Ingress leads to the gateway, and to those of its addresses alone that ask for a key."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from tests.unit.chart.rendering import of_kind, render

import shortstack.gateway.gateway as composition
from shortstack.core.clock import FakeClock
from shortstack.core.health import Health
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.gateway.app import build_app
from shortstack.gateway.config import GatewayConfig
from shortstack.gateway.database import open_database
from shortstack.storage.blobs import BlobStore

WITHOUT_KEY = {"/livez", "/readyz", "/metrics"}


def test_the_ingress_leads_to_the_gateway() -> None:
    objects = render(values="gpu-tgi")
    (ingress,) = of_kind(objects, "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    for path in rule["http"]["paths"]:
        backend = path["backend"]["service"]
        service = of_kind(objects, "Service")[backend["name"]]
        assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert rule["host"] == "chat.example.com"
    assert ingress["spec"]["tls"] == [{"secretName": "chat-example-com", "hosts": ["chat.example.com"]}]


@pytest.fixture
async def addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every address that a whole gateway answers."""
    found: list[APIRouter] = []

    def remembered(routers: Sequence[APIRouter]) -> FastAPI:
        found.extend(routers)
        return build_app(routers)

    monkeypatch.setattr(composition, "build_app", remembered)
    config, clock = GatewayConfig(var=tmp_path, storage_url=f"file://{tmp_path / 'blobs'}"), FakeClock()
    with Telemetry.start("gateway", config, io.StringIO()) as telemetry:
        engine, blobs = open_database(config.database()), BlobStore.open(config.storage_url)
        given = composition.Resources(config, engine, blobs, BaseModels({}, {}), telemetry, Health(60, clock), clock)
        async with composition.Gateway(given).running():
            pass
    return {route.path for router in found for route in router.routes if isinstance(route, APIRoute)}


async def test_the_ingress_publishes_what_asks_for_a_key_and_nothing_else(addresses: set[str]) -> None:
    (ingress,) = of_kind(render(values="gpu-tgi"), "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    paths = rule["http"]["paths"]
    assert {path["pathType"] for path in paths} == {"Prefix"}
    # A prefix counts by whole parts of the address; "/" is that of every one.
    prefixes = [path["path"].rstrip("/") + "/" for path in paths]

    assert addresses > {"/v1/models", "/v1/chat/completions", "/chat", *WITHOUT_KEY}
    unpublished = {address for address in addresses if not f"{address}/".startswith(tuple(prefixes))}
    assert unpublished == WITHOUT_KEY
