"""The gateway's tables: keys, files, and tokens used. SQLite on one machine, PostgreSQL in a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from shortstack.core.errors import Fatal

__all__ = ["FILES", "KEYS", "USAGE", "open_database"]

_TABLES = MetaData()

KEYS = Table(
    "api_keys",
    _TABLES,
    Column("id", String(40), primary_key=True),
    # What a key begins with: finds the row, opens nothing.
    Column("prefix", String(32), nullable=False, unique=True),
    # SHA-256 of the whole key, in hex. A key has 256 random bits, so a slow hash would add nothing.
    Column("digest", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("scopes", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

USAGE = Table(
    "usage",
    _TABLES,
    Column("day", String(10), primary_key=True),
    Column("key_id", String(40), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)

FILES = Table(
    "files",
    _TABLES,
    Column("id", String(40), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", String(512), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Order of arrival, for pages: files of one second are told apart.
    Column("sequence", Integer, nullable=False),
    Column("deleted", Boolean, nullable=False, default=False),
)


def open_database(url: str) -> Engine:
    """The database with its tables, created where they are missing.

    Raises:
        Fatal: the URL is no SQLAlchemy URL, or the database cannot be opened.
    """
    where, remedy = "SHORTSTACK_DATABASE_URL", "Expected a SQLAlchemy URL, e.g. postgresql+psycopg://HOST/NAME."
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=not sqlite)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        # The URL may hold a password: it is not repeated.
        raise Fatal(f"the database cannot be opened: {type(error).__name__}", where=where, remedy=remedy) from error
    if sqlite:
        event.listen(engine, "connect", _tune_sqlite)
    try:
        _TABLES.create_all(engine)
    except SQLAlchemyError as error:
        raise Fatal(f"the database cannot be opened: {type(error).__name__}", where=where, remedy=remedy) from error
    return engine


def _tune_sqlite(connection: Any, _record: ConnectionPoolEntry) -> None:
    """Readers beside a writer, and a wait instead of an error where two write."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
