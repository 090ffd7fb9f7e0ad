"""Each service between publication and ready dataset killed with -9 at each hop, on one stack, a dataset a hop."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from threading import Event

import pytest
from kafka import KafkaProducer  # type: ignore[attr-defined]  # its __all__ is built at import
from tests.e2e.faults.census import assert_whole
from tests.e2e.faults.faulty import FaultyStack

pytestmark = pytest.mark.timeout(900)
GOOD, REPEATED, EMPTY, BROKEN = 1500, 40, 25, 6
HOPS = [
    ("ingestion", "ingestion.mid_batches:2"),
    ("ingestion", "ingestion.before_announce"),
    ("formatting", "formatting.before_flush:2"),
    ("formatting", "worker.handled"),
    ("formatting", "worker.flushed"),
    ("formatting", "worker.committed"),
    ("assembly", "assembly.before_snapshot"),
    ("assembly", "assembly.before_notice"),
]


def publish(stack: FaultyStack, name: str, good: int = GOOD) -> None:
    """A file of a few batches with deliberate dirt: repeats, empty answers, lines that are no JSON."""
    rows = [{"prompt": f"{name}: id {n}?", "completion": f"It is {n}. {'So it goes on. ' * 50}"} for n in range(good)]
    rows += rows[:REPEATED]
    rows += [{"prompt": f"{name}: id {good + n}?", "completion": " "} for n in range(EMPTY)]
    random.Random(name).shuffle(rows)
    file = stack.write_source(f"{name}.jsonl", rows)
    with (stack.sources / file).open("a") as stream:
        stream.writelines(f'{{"prompt": "broken {n}\n' for n in range(BROKEN))
    stack.publish({"dataset": name, "source": file}, name)


def assert_counts(stack: FaultyStack, name: str, good: int = GOOD) -> None:
    snapshot, census = assert_whole(stack, name)
    counts = snapshot.counts
    assert counts.items == good + REPEATED + EMPTY + BROKEN
    assert (counts.malformed, counts.rejected, counts.failed) == (BROKEN, EMPTY, 0)
    assert (counts.chosen, counts.duplicates) == (good, REPEATED)
    assert {census.ids[place] for place in census.chosen} == set(range(good))


@pytest.mark.parametrize(("service", "place"), HOPS)
def test_a_kill_at_a_hop_changes_no_count(faulty: FaultyStack, service: str, place: str) -> None:
    name = place.partition(":")[0].replace("_", "-")
    with faulty.killed_at(service, place):
        publish(faulty, name)
    assert_counts(faulty, name)


def test_all_of_them_killed_while_they_work(faulty: FaultyStack) -> None:
    good = 4 * GOOD
    publish(faulty, "all-killed", good)
    faulty.until(lambda: faulty.dataset("all-killed"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(faulty.kill, ("ingestion", "formatting", "assembly")))
    assert_counts(faulty, "all-killed", good)


def kill_at_random(stack: FaultyStack, pauses: list[float], ended: Event) -> None:
    """Kills formatting at drawn times after it is back from the kill before, until its test has ended."""
    for pause in pauses:
        if ended.wait(pause):
            return
        stack.kill("formatting")


def test_every_acknowledged_record_has_one_fate_whenever_a_worker_dies(faulty: FaultyStack) -> None:
    """Parts of an upload, shuffled, some sent twice or thrice, while formatting is killed at random."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed of the schedule: {seed}")  # pytest shows it when the test fails
    chance = random.Random(seed)
    sent = [{"prompt": f"ledger: id {n}?", "completion": "" if n % 17 == 0 else "Yes. " * 120} for n in range(4000)]
    for n in range(5, 4000, 29):
        sent[n] = {"prompt": sent[n - 1]["prompt"], "completion": sent[n - 1]["completion"]}
    parts, at = [], 0
    while at < len(sent):
        size = chance.randint(20, 150)
        parts.append((at, sent[at : at + size]))
        at += size
    schedule = [*parts, *chance.choices(parts, k=len(parts) // 3)]
    chance.shuffle(schedule)
    close_at = chance.randrange(len(schedule))
    pauses = [chance.uniform(0, 1.5) for _ in range(4)]
    acknowledged: set[int] = set()
    head = {"dataset": "ledger", "upload": f"upload-{seed}"}
    with ExitStack() as stack:
        producer = stack.enter_context(closing(KafkaProducer(bootstrap_servers=faulty.bootstrap)))
        pool, ended = stack.enter_context(ThreadPoolExecutor(1)), Event()
        stack.callback(ended.set)
        killing = pool.submit(kill_at_random, faulty, pauses, ended)
        for number, (seq, part) in enumerate(schedule):
            if number == close_at:
                end = {**head, "complete": True, "records": len(sent), "recipe": "default"}
                producer.send("datasets.ingest", key=b"end", value=json.dumps(end).encode())
            # Keys spread the parts over partitions, so that they come in an order of their own.
            key, value = str(chance.randrange(8)).encode(), {**head, "seq": seq, "records": part}
            producer.send("datasets.ingest", key=key, value=json.dumps(value).encode()).get(timeout=60)
            acknowledged |= set(range(seq, seq + len(part)))
        producer.flush(60)
        killing.result()
    snapshot, census = assert_whole(faulty, "ledger")
    accounted = {seq for _, seq in census.verdicts}
    assert acknowledged <= accounted <= set(range(len(sent)))
    assert {place[1]: found for place, found in census.ids.items()} == {
        n: int(record["prompt"].removeprefix("ledger: id ").removesuffix("?")) for n, record in enumerate(sent)
    }
    assert snapshot.counts.malformed == 0
    assert snapshot.counts.duplicates + snapshot.counts.rejected > 0
