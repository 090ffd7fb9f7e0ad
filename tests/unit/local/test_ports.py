from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shortstack.local.ports import PortPlan
from shortstack.local.services import SERVICES

NAMES = ("kafka", *SERVICES)


def all_ports(plan: PortPlan) -> list[int]:
    return [port for name in NAMES for port in plan.taken_by(name).values()]


@given(st.integers(1024, 65_000))
def test_no_two_processes_share_a_port(base: int) -> None:
    ports = all_ports(PortPlan(base))
    assert len(ports) == len(set(ports))


@given(st.integers(1024, 64_000), st.integers(100, 500))
def test_stacks_whose_bases_are_a_hundred_apart_do_not_meet(base: int, apart: int) -> None:
    first = set(all_ports(PortPlan(base, gateway=1023)))
    second = set(all_ports(PortPlan(base + apart, gateway=1022)))
    assert not first & second


def test_users_find_the_gateway_at_8080_unless_the_base_is_moved() -> None:
    assert PortPlan().gateway_port == 8080
    assert PortPlan(20000).gateway_port == 20080
    assert PortPlan(20000, gateway=9999).gateway_port == 9999


def test_every_peer_address_is_a_port_that_the_peer_takes() -> None:
    plan = PortPlan(30000)
    addresses = plan.addresses()
    for service in ("ingestion", "formatting", "assembly", "training", "serving"):
        assert addresses[f"SHORTSTACK_{service.upper()}_ADDRESS"] == f"127.0.0.1:{plan.taken_by(service)['grpc']}"
    assert addresses["SHORTSTACK_INFERENCE_URL"].endswith(f":{plan.taken_by('inference')['http']}")
