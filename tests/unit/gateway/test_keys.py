"""Keys: what is kept of them, and who gets in."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Fatal, NotFound
from shortstack.gateway.database import open_database
from shortstack.gateway.keys.secret import new_key, prefix_of
from shortstack.gateway.keys.store import KeyStore, ensure_first_key


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(f"sqlite:///{tmp_path / 'db' / 'gateway.db'}")


@pytest.fixture
def store(engine: Engine) -> KeyStore:
    return KeyStore(engine, FakeClock())


def test_a_key_has_256_random_bits_beside_its_prefix() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) - len(str(prefix_of(key))) == 43 for key in keys)


def test_a_declared_key_is_accepted_at_every_start_and_again_after_a_revoke(store: KeyStore, tmp_path: Path) -> None:
    declared = SecretStr(new_key())
    ensure_first_key(store, declared, tmp_path / "key")
    ensure_first_key(store, declared, tmp_path / "key")
    assert not (tmp_path / "key").exists()
    assert len(store.listed()) == 1
    store.revoke(store.listed()[0].id)
    assert store.verify(declared.get_secret_value()) is None
    ensure_first_key(store, declared, tmp_path / "key")
    principal = store.verify(declared.get_secret_value())
    assert principal is not None
    assert principal.may("admin")


def test_a_drawn_key_stays_the_same_and_outlives_its_database(store: KeyStore, tmp_path: Path) -> None:
    ensure_first_key(store, None, tmp_path / "key")
    key = (tmp_path / "key").read_text().strip()
    other = KeyStore(open_database(f"sqlite:///{tmp_path / 'new.db'}"), FakeClock())
    ensure_first_key(other, None, tmp_path / "key")
    assert (tmp_path / "key").read_text().strip() == key
    assert other.verify(key) is not None


@pytest.mark.parametrize("weak", ["hunter2", "sk-ss-short", "sk-" + "x" * 80, "sk-ss-" + "ä" * 60])
def test_a_weak_declared_key_is_refused_and_not_repeated(store: KeyStore, tmp_path: Path, weak: str) -> None:
    with pytest.raises(Fatal) as caught:
        ensure_first_key(store, SecretStr(weak), tmp_path / "key")
    assert weak not in str(caught.value)
    assert "SHORTSTACK_BOOTSTRAP_KEY" in str(caught.value)


def test_a_revoked_key_is_unknown_and_stays_listed(store: KeyStore) -> None:
    record, key = store.create("ci", "team-a", frozenset({"chat"}))
    assert store.verify(key) is not None
    store.revoke(record.id)
    store.revoke(record.id)
    assert store.verify(key) is None
    assert store.listed()[0].revoked_at is not None
    with pytest.raises(NotFound):
        store.revoke("key-none")


def test_a_database_that_cannot_be_opened_says_where_and_keeps_the_password() -> None:
    with pytest.raises(Fatal) as caught:
        open_database("nosuchdb://user:hunter2@host/name")
    assert "SHORTSTACK_DATABASE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_drawn_key_that_was_revoked_is_replaced_not_revived(store: KeyStore, tmp_path: Path) -> None:
    ensure_first_key(store, None, tmp_path / "key")
    revoked = (tmp_path / "key").read_text().strip()
    store.revoke(store.listed()[0].id)
    ensure_first_key(store, None, tmp_path / "key")
    drawn = (tmp_path / "key").read_text().strip()
    assert drawn != revoked
    assert store.verify(revoked) is None
    assert store.verify(drawn) is not None
