"""Why a pod waits, and how it ended, in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.fakes.kubernetes import FakeKubernetes

from shortstack.cluster.pods import container_ended, how_it_ended, is_over, overdue, why_waiting


@pytest.fixture
def kubernetes() -> FakeKubernetes:
    found = FakeKubernetes()
    containers = {"initContainers": [{"name": "prepare"}], "containers": [{"name": "trainer"}, {"name": "agent"}]}
    found.add("jobs", "job", spec={"template": {"metadata": {}, "spec": containers}})
    return found


def test_a_new_pod_and_one_that_runs_wait_for_nothing(kubernetes: FakeKubernetes) -> None:
    pod = kubernetes.pod_of("job")
    assert why_waiting(kubernetes.get("pods", pod)) == ""
    kubernetes.held_up(pod, "prepare", "PodInitializing", "")
    assert why_waiting(kubernetes.get("pods", pod)) == ""
    kubernetes.run(pod)
    assert why_waiting(kubernetes.get("pods", pod)) == ""
    assert how_it_ended(kubernetes.get("pods", pod)) == ""


def test_the_schedulers_words_are_passed_on(kubernetes: FakeKubernetes) -> None:
    pod = kubernetes.pod_of("job")
    kubernetes.unschedulable(pod, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    words = why_waiting(kubernetes.get("pods", pod))
    assert "cannot be scheduled: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu. Make room" in words


@pytest.mark.parametrize(
    ("reason", "message", "remedy"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "stack/training:9"', "image's name and tag"),
        ("CreateContainerConfigError", 'secret "s3" not found', "Make the secret"),
        ("RunContainerError", "exec: no such file", "kubectl describe pod job-"),
    ],
)
def test_a_container_that_cannot_start_is_told_with_a_remedy(
    kubernetes: FakeKubernetes, reason: str, message: str, remedy: str
) -> None:
    pod = kubernetes.pod_of("job")
    kubernetes.held_up(pod, "agent", reason, message)
    words = why_waiting(kubernetes.get("pods", pod))
    assert f"container agent of pod {pod}: {reason}: {message}" in words
    assert remedy in words


def test_how_a_pod_ended(kubernetes: FakeKubernetes) -> None:
    pod = kubernetes.pod_of("job")
    kubernetes.run(pod)
    kubernetes.end_container(pod, "trainer", 137, "OOMKilled")
    assert container_ended(kubernetes.get("pods", pod), "agent") is None
    assert not is_over(kubernetes.get("pods", pod))
    kubernetes.end_container(pod, "agent", 1, message="traceback\nerror: the object store is away\n")
    found = kubernetes.get("pods", pod)
    assert is_over(found)
    killed = "its container trainer ended (OOMKilled, exit code 137): it needed more memory than its limit"
    assert how_it_ended(found).startswith(killed)
    assert container_ended(found, "agent") == {
        "exitCode": 1,
        "reason": "Error",
        "message": "traceback\nerror: the object store is away\n",
    }


def test_an_eviction_has_its_reason(kubernetes: FakeKubernetes) -> None:
    pod = kubernetes.pod_of("job")
    kubernetes.end_pod(pod, "Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage.")
    assert how_it_ended(kubernetes.get("pods", pod)).startswith("Evicted: The node was low on resource")


def test_a_pod_that_does_not_end_is_told_a_minute_after_its_time(kubernetes: FakeKubernetes) -> None:
    pod = kubernetes.pod_of("job")
    kubernetes.run(pod)
    kubernetes.pods_linger = True
    assert overdue(kubernetes.get("pods", pod), datetime(2026, 1, 1, 0, 5, tzinfo=UTC)) == ""
    kubernetes.delete("pods", pod)
    assert overdue(kubernetes.get("pods", pod), datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC)) == ""
    words = overdue(kubernetes.get("pods", pod), datetime(2026, 1, 1, 0, 5, tzinfo=UTC))
    assert f"kubectl delete pod {pod} --force" in words


def test_the_last_line_that_a_container_printed_says_why(kubernetes: FakeKubernetes) -> None:
    pod = kubernetes.pod_of("job")
    kubernetes.end_container(pod, "prepare", 75, message="one line\nerror: the object store is away\n")
    found = kubernetes.get("pods", pod)
    assert is_over(found)
    assert how_it_ended(found) == "its container prepare ended (Error, exit code 75): error: the object store is away"
