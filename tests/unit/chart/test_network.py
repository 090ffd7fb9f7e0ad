"""Who may reach whom, as the NetworkPolicies of the release add up."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from tests.unit.chart.rendering import FULL, VALUES, matches, of_kind, pods, render

Labels = dict[str, str]
GRPC, HTTP, KAFKA, API = 50051, 8081, 9092, 8080
STRANGER: Labels = {}
SERVICES = ("ingestion", "formatting", "assembly", "training", "serving")


class Network:
    """Decides as a cluster does: a pod that a policy selects may do what one of its policies allows, and nothing else.

    Pods outside of the release stand in the same namespace; its peers are pods by labels, namespaces, and addresses.
    """

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.policies = [found["spec"] for found in of_kind(objects, "NetworkPolicy").values()]
        self.pods = pods(objects)

    def labels(self, component: str) -> Labels:
        """Labels of a component's pod."""
        return next(each.labels for each in self.pods if each.component == component)

    def reach(self, sender: Labels, receiver: Labels, port: int, *, namespace: str = "same") -> bool:
        """Whether a pod may open a connection to another one."""
        out = namespace != "same" or self._allowed("egress", sender, receiver, port, "same")
        return out and self._allowed("ingress", receiver, sender, port, namespace)

    def leaves(self, sender: Labels, address: str, port: int, protocol: str = "TCP") -> bool:
        """Whether a pod may send to an address outside of the cluster."""
        rules = self._rules("egress", sender)
        return rules is None or any(
            _port(rule, port, protocol) and ("to" not in rule or any(_in_block(peer, address) for peer in rule["to"]))
            for rule in rules
        )

    def _rules(self, way: str, labels: Labels) -> list[dict[str, Any]] | None:
        selected = [spec for spec in self.policies if matches(spec["podSelector"], labels)]
        assert all(spec["policyTypes"] == ["Ingress", "Egress"] for spec in selected)
        return [rule for spec in selected for rule in spec.get(way) or []] if selected else None

    def _allowed(self, way: str, own: Labels, other: Labels, port: int, namespace: str) -> bool:
        rules, side = self._rules(way, own), {"ingress": "from", "egress": "to"}[way]
        return rules is None or any(
            _port(rule, port, "TCP") and (side not in rule or any(_is(peer, other, namespace) for peer in rule[side]))
            for rule in rules
        )


def _port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    return any(allowed == {"protocol": protocol, "port": port} for allowed in rule["ports"])


def _is(peer: dict[str, Any], labels: Labels, namespace: str) -> bool:
    if "ipBlock" in peer:
        return False
    inside = namespace == "same"
    if "namespaceSelector" in peer:
        names = {"kubernetes.io/metadata.name": "here" if inside else namespace}
        return matches(peer["namespaceSelector"], names) and matches(peer.get("podSelector", {}), labels)
    return inside and matches(peer["podSelector"], labels)


def _in_block(peer: dict[str, Any], address: str) -> bool:
    return "ipBlock" in peer and ipaddress.ip_address(address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])


@pytest.fixture
def network() -> Network:
    return Network(render())


def test_all_pods_are_denied_and_each_component_has_a_policy_of_its_own() -> None:
    for values in VALUES:
        objects = render(values=values)
        policies = of_kind(objects, "NetworkPolicy")
        deny = policies[f"{FULL}-deny"]["spec"]
        assert "ingress" not in deny
        assert "egress" not in deny
        for each in pods(objects):
            assert matches(deny["podSelector"], each.labels), each.owner
            own = policies[f"{FULL}-{each.component}"]["spec"]
            assert matches(own["podSelector"], each.labels)


def test_a_stranger_reaches_nothing_but_the_api_and_metrics(network: Network) -> None:
    open_to_all = {("gateway", API), *((service, HTTP) for service in SERVICES)}
    for each in network.pods:
        for port in (GRPC, HTTP, KAFKA, API):
            assert network.reach(STRANGER, each.labels, port) is ((each.component, port) in open_to_all), each.owner


def test_the_label_opens_kafka_and_nothing_else(network: Network) -> None:
    producer = {"shortstack/kafka-client": "true"}
    assert network.reach(producer, network.labels("kafka"), KAFKA)
    assert not network.reach(producer, network.labels("kafka"), 9093)
    assert not network.reach(producer, network.labels("kafka"), KAFKA, namespace="elsewhere")
    assert not network.reach(producer, network.labels("server"), API)
    assert not network.reach(producer, network.labels("ingestion"), GRPC)


def test_each_pod_reaches_what_it_needs_and_no_more(network: Network) -> None:
    everyone = {each.component for each in network.pods}
    kafka = {"kafka", "ingestion", "formatting", "assembly", "training", "serving", "trainer", "cli", "topics"}
    expected = {
        ("kafka", KAFKA): kafka,
        ("gateway", API): {"cli", "test"},
        ("server", API): {"gateway", "serving"},
        ("ingestion", GRPC): {"gateway", "cli", "test"},
        ("training", GRPC): {"gateway", "cli", "test"},
        ("serving", GRPC): {"gateway", "cli", "test"},
        ("formatting", GRPC): {"cli", "test"},
        ("assembly", GRPC): {"cli", "test"},
        ("ingestion", HTTP): {"cli", "test"},
        ("trainer", API): set(),
        ("cli", API): set(),
    }
    for (receiver, port), senders in expected.items():
        found = {name for name in everyone if network.reach(network.labels(name), network.labels(receiver), port)}
        assert found == senders, (receiver, port)


def test_names_are_resolved_by_any_server_and_nothing_else_leaves(network: Network) -> None:
    for each in network.pods:
        assert network.leaves(each.labels, "192.0.2.53", 53, "UDP"), each.owner
        assert network.leaves(each.labels, "192.0.2.53", 53, "TCP")
        assert not network.leaves(each.labels, "192.0.2.1", 80)


def test_only_the_controllers_reach_the_api_server(network: Network) -> None:
    for port in (443, 6443):
        who = {each.component for each in network.pods if network.leaves(each.labels, "192.0.2.1", port)}
        assert who == {"training", "serving"}


def test_the_way_to_the_api_server_is_a_value() -> None:
    named = Network(
        render("networkPolicy.apiServer.ports={16443}", "networkPolicy.apiServer.to[0].ipBlock.cidr=10.0.0.1/32")
    )
    assert named.leaves(named.labels("training"), "10.0.0.1", 16443)
    assert not named.leaves(named.labels("training"), "10.0.0.2", 16443)
    assert not named.leaves(named.labels("training"), "10.0.0.1", 443)


def test_an_external_kafka_is_reached_at_its_address_and_port() -> None:
    network = Network(render(values="external-kafka"))
    clients = {each.component for each in network.pods if network.leaves(each.labels, "198.51.100.7", 9093)}
    assert clients == {"ingestion", "formatting", "assembly", "training", "serving", "trainer", "cli", "topics"}
    assert not network.leaves(network.labels("formatting"), "203.0.113.7", 9093)


def test_s3_is_reached_at_its_port_by_all_that_read_or_write_objects() -> None:
    network = Network(render(values="s3"))
    users = {each.component for each in network.pods if network.leaves(each.labels, "192.0.2.9", 9000)}
    assert users == {
        "ingestion",
        "formatting",
        "assembly",
        "training",
        "serving",
        "gateway",
        "trainer",
        "server",
        "base-models",
        "cli",
    }
    assert not network.leaves(network.labels("gateway"), "198.51.100.1", 9000)


def test_a_database_of_ones_own_is_reached_by_the_gateway_alone() -> None:
    named = "gateway.database.existingSecret=mine"
    network = Network(render(named))
    assert {each.component for each in network.pods if network.leaves(each.labels, "192.0.2.9", 5432)} == {"gateway"}
    block = "networkPolicy.database.to[0].ipBlock.cidr=192.0.2.9/32"
    narrow = Network(render(named, "networkPolicy.database.ports={3306}", block))
    gateway = narrow.labels("gateway")
    assert narrow.leaves(gateway, "192.0.2.9", 3306)
    assert not narrow.leaves(gateway, "192.0.2.9", 5432)
    assert not narrow.leaves(gateway, "192.0.2.10", 3306)


def test_a_database_on_a_claim_needs_no_way_out(network: Network) -> None:
    assert not network.leaves(network.labels("gateway"), "192.0.2.9", 5432)


@pytest.mark.parametrize(
    ("url", "port"), [("", 443), ("https://s3.example.com", 443), ("http://minio", 80), ("http://minio:9000", 9000)]
)
def test_the_port_of_s3_is_that_of_its_address(url: str, port: int) -> None:
    network = Network(render("storage.kind=s3", "storage.s3.bucket=b", f"storage.s3.endpointUrl={url}"))
    assert network.leaves(network.labels("assembly"), "192.0.2.1", port)
    assert not network.leaves(network.labels("assembly"), "192.0.2.1", 81)


@pytest.mark.parametrize("namespace", ["same", "elsewhere"])
def test_a_closed_gateway_is_closed_to_strangers_in_every_namespace(namespace: str) -> None:
    """Its metrics stand on the port of its API: who may read the services' metrics may not call it for that."""
    network = Network(render("networkPolicy.gateway.open=false"))
    assert not network.reach(STRANGER, network.labels("gateway"), API, namespace=namespace)
    assert network.reach(STRANGER, network.labels("ingestion"), HTTP, namespace=namespace)


def test_a_closed_gateway_opens_to_a_label() -> None:
    network = Network(render("networkPolicy.gateway.open=false"))
    gateway, client = network.labels("gateway"), {"shortstack/api-client": "true"}
    assert network.reach(client, gateway, API)
    assert network.reach(network.labels("cli"), gateway, API)
    assert not network.reach(client, gateway, API, namespace="elsewhere")


def test_a_closed_gateway_is_scraped_by_whom_it_names() -> None:
    peer = "networkPolicy.gateway.metricsFrom[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name"
    network = Network(render("networkPolicy.gateway.open=false", f"{peer}=monitoring"))
    assert network.reach(STRANGER, network.labels("gateway"), API, namespace="monitoring")
    assert not network.reach(STRANGER, network.labels("gateway"), API, namespace="elsewhere")
    assert not network.reach(STRANGER, network.labels("gateway"), API)


def test_rules_of_a_persons_own_are_added() -> None:
    network = Network(
        render(
            "gateway.extraEgress[0].ports[0].port=5432",
            "gateway.extraEgress[0].ports[0].protocol=TCP",
            "gateway.extraEgress[0].to[0].ipBlock.cidr=192.0.2.5/32",
        )
    )
    assert network.leaves(network.labels("gateway"), "192.0.2.5", 5432)
    assert network.reach(network.labels("gateway"), network.labels("serving"), GRPC)


def test_without_policies_there_are_none() -> None:
    assert not of_kind(render("networkPolicy.enabled=false"), "NetworkPolicy")
