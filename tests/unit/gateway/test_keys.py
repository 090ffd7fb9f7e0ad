"""Keys: what is kept of them, and who gets in."""

from __future__ import annotations

from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient
from pydantic import SecretStr
from sqlalchemy import Engine

from shortstack.core.clock import FakeClock
from shortstack.core.errors import Fatal, NotFound
from shortstack.gateway.app import build_app
from shortstack.gateway.database import open_database
from shortstack.gateway.keys.auth import Authenticator
from shortstack.gateway.keys.http import keys_router
from shortstack.gateway.keys.secret import SCOPES, new_key, prefix_of
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


def test_another_declared_key_ends_the_one_before_and_no_other(store: KeyStore, tmp_path: Path) -> None:
    first, second = SecretStr(new_key()), SecretStr(new_key())
    ensure_first_key(store, first, tmp_path / "key")
    _, created = store.create("ci", "default", frozenset(SCOPES))
    ensure_first_key(store, None, tmp_path / "key")

    ensure_first_key(store, second, tmp_path / "key")

    assert store.verify(first.get_secret_value()) is None
    assert store.verify(second.get_secret_value()) is not None
    assert store.verify(created) is not None
    assert store.verify((tmp_path / "key").read_text().strip()) is not None


def test_a_declared_key_may_come_back(store: KeyStore, tmp_path: Path) -> None:
    first, second = SecretStr(new_key()), SecretStr(new_key())
    for declared in (first, second, first):
        ensure_first_key(store, declared, tmp_path / "key")
    assert store.verify(first.get_secret_value()) is not None
    assert store.verify(second.get_secret_value()) is None


@pytest.mark.parametrize("name", ["bootstrap", " Bootstrap "])
async def test_no_key_is_created_by_the_name_of_the_declared_one(store: KeyStore, name: str) -> None:
    """The next rotation would revoke it."""
    admin = new_key()
    store.ensure(admin, "local")
    app = build_app([keys_router(store, Authenticator(store, 1, FakeClock()))])
    headers = {"authorization": f"Bearer {admin}"}
    async with AsyncClient(transport=ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.post("/v1/admin/keys", headers=headers, json={"name": name})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "name"
    assert len(store.listed()) == 1


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
