from __future__ import annotations

import json
from pathlib import Path

import pytest

from shortstack.core.clock import SystemClock
from shortstack.core.errors import Fatal, Invalid, Transient
from shortstack.local.services import SERVICES, apply_topics, local_stages, service_environment
from shortstack.local.settings import LocalSettings
from shortstack.streams.kafka import KafkaBroker
from shortstack.streams.memory import MemoryBroker
from shortstack.streams.topics import TOPICS


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalSettings:
    monkeypatch.delenv("SHORTSTACK_KAFKA_BOOTSTRAP", raising=False)
    return LocalSettings(var=tmp_path, port_base=21000)


def test_each_service_is_told_its_own_ports_and_everyone_s_addresses(settings: LocalSettings) -> None:
    environment = service_environment(settings, "formatting")
    assert environment["SHORTSTACK_GRPC_PORT"] == str(settings.ports.grpc("formatting"))
    assert environment["SHORTSTACK_HTTP_PORT"] == str(settings.ports.http("formatting"))
    assert environment["SHORTSTACK_KAFKA_BOOTSTRAP"] == "127.0.0.1:21092"
    assert environment["SHORTSTACK_ASSEMBLY_ADDRESS"] == f"127.0.0.1:{settings.ports.grpc('assembly')}"
    assert environment["SHORTSTACK_STORAGE_URL"] == f"file://{settings.root}/blobs"
    assert json.loads(environment["SHORTSTACK_BASE_MODELS"]).keys() == {"smollm2-135m-instruct"}


def test_inference_is_told_in_the_words_of_tgi(settings: LocalSettings) -> None:
    environment = service_environment(settings, "inference")
    assert environment["PORT"] == str(settings.ports.http("inference"))
    assert environment["HOSTNAME"] == "127.0.0.1"
    assert environment["MODEL_ID"].endswith("models/smollm2-135m-instruct")


def test_inference_runs_the_first_of_the_declared_base_models(settings: LocalSettings) -> None:
    declared = settings.model_copy(update={"base_models": '{"tiny": "/models/tiny", "other": "/models/other"}'})
    assert service_environment(declared, "inference")["MODEL_ID"] == "/models/tiny"


@pytest.mark.parametrize("value", ["no json", "[]", "{}", '{"tiny": 1}'])
def test_base_models_that_are_no_table_are_refused_with_the_form(settings: LocalSettings, value: str) -> None:
    with pytest.raises(Fatal, match=r"SHORTSTACK_BASE_MODELS.*NAME"):
        service_environment(settings.model_copy(update={"base_models": value}), "inference")


def test_a_stray_port_in_the_callers_environment_does_not_reach_a_service(
    settings: LocalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTSTACK_GRPC_PORT", "1")
    assert service_environment(settings, "serving")["SHORTSTACK_GRPC_PORT"] == str(settings.ports.grpc("serving"))


def test_credentials_for_an_external_broker_are_passed_on_and_no_broker_is_started(
    settings: LocalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTSTACK_KAFKA_SASL_USERNAME", "alice")
    external = settings.model_copy(update={"kafka_bootstrap": "kafka.example:9093"})
    environment = service_environment(external, "ingestion")
    assert environment["SHORTSTACK_KAFKA_BOOTSTRAP"] == "kafka.example:9093"
    assert environment["SHORTSTACK_KAFKA_SASL_USERNAME"] == "alice"
    started = [spec.name for stage in local_stages(external) for spec in (*stage.services, *stage.meanwhile)]
    assert started == list(SERVICES)


def test_owners_of_the_setting_and_of_the_command_get_their_topics(
    settings: LocalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker(SystemClock(), [])
    monkeypatch.setattr(KafkaBroker, "connect", lambda config: broker)
    monkeypatch.setenv("SHORTSTACK_INGEST_OWNERS", '["alice"]')

    made = apply_topics(settings, ["bob"])

    assert len(made) == len(TOPICS) + 4
    for name in ("alice", "alice.dlq", "bob", "bob.dlq"):
        broker.require([f"datasets.ingest.{name}"])
    assert apply_topics(settings, ["bob"]) == []
    with pytest.raises(Transient, match="`shortstack topics apply carol`"):
        broker.reader(["datasets.ingest.carol"])
    with pytest.raises(Invalid, match="owner"):
        apply_topics(settings, ["Not A Name!"])
