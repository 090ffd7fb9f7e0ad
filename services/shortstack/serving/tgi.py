"""The few calls of the TGI wire that serving makes, and the embedded server's adapters.

Source of the shapes: TGI 3.3.7, docs/inference.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from shortstack.core.errors import Poison, Transient

__all__ = ["Failed", "GeneratedToken", "TgiClient", "TgiServer"]

_CONNECT_S: Final = 2.0
_QUICK_S: Final = 25.0
"""For questions that a server answers without generating. TGI's ``/health`` blocks while the model is busy: 5.7 s were
seen while it decoded, 20 s while it was frozen."""


_MOST_STOPS: Final = 4
"""TGI refuses more."""
_GENERATION_FAILED: Final = 424
_OVERLOADED: Final = frozenset({429, 503})


class Failed(Transient):
    """A server failed while it worked on a request, which need not be that request's fault.

    TGI answers 424 to every request of a batch in which one made the model raise, and to all while its model's process
    is gone; 500 where it ends before the answer did; a proxy before it 502 or 504.
    """


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A generated token: id and log probability."""

    id: int
    logprob: float


class TgiServer(Protocol):
    """What the contract test asks of a server."""

    def tokenize(self, text: str) -> list[int]:
        """``/tokenize``: ids with special tokens added."""
        ...

    def generate(self, prompt: str, new_tokens: int, adapter_id: str, stop: Sequence[str] = ()) -> list[GeneratedToken]:
        """``/generate``, greedy; ends after one of ``stop`` too."""
        ...


class TgiClient:
    """Talks to one server over HTTP. Safe to share between threads.

    Every method raises `Transient` while the server is away or overloaded, `Failed`, a `Transient`, when it fails a
    request, and `Poison` when it refuses one.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._client = httpx.Client(base_url=url, timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S))
        self.url = url

    def close(self) -> None:
        """Closes connections."""
        self._client.close()

    def info(self) -> Mapping[str, Any]:
        """``/info``: model and limits."""
        body: Mapping[str, Any] = self._call("GET", "/info")
        return body

    def healthy(self) -> bool:
        """``/health``: whether it can generate."""
        return self._succeeds("/health")

    def answers(self) -> bool:
        """Whether ``/info`` says something: the model is loaded, healthy or not."""
        return self._succeeds("/info")

    def _succeeds(self, path: str) -> bool:
        try:
            self._call("GET", path)
        except (Transient, Poison):
            return False
        return True

    def tokenize(self, text: str) -> list[int]:
        """``/tokenize``: ids with special tokens added."""
        return [token["id"] for token in self._call("POST", "/tokenize", {"inputs": text})]

    def generate(self, prompt: str, new_tokens: int, adapter_id: str, stop: Sequence[str] = ()) -> list[GeneratedToken]:
        """``/generate``, greedy, with details."""
        parameters: dict[str, Any] = {"max_new_tokens": new_tokens, "details": True, "do_sample": False}
        if adapter_id:
            parameters["adapter_id"] = adapter_id
        if stop:
            parameters["stop"] = list(stop)[:_MOST_STOPS]
        body = self._call("POST", "/generate", {"inputs": prompt, "parameters": parameters})
        # JSON has no not-a-number: what weights with NaN give arrives as null.
        said = [(token["id"], token["logprob"]) for token in body["details"]["tokens"]]
        return [GeneratedToken(token, math.nan if logprob is None else logprob) for token, logprob in said]

    def adapters(self) -> dict[str, Path]:
        """Adapters that the embedded server holds: id → folder."""
        return {a["id"]: Path(a["path"]) for a in self._call("GET", "/adapters")["adapters"]}

    def put_adapter(self, adapter_id: str, folder: Path) -> None:
        """Has the embedded server load an adapter; the same again changes nothing."""
        self._call("PUT", f"/adapters/{adapter_id}", {"path": str(folder)})

    def drop_adapter(self, adapter_id: str) -> None:
        """Has the embedded server forget an adapter; requests under way finish."""
        self._call("DELETE", f"/adapters/{adapter_id}")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        where = f"{self.url}{path}"
        try:
            timeout = httpx.Timeout(_QUICK_S, connect=_CONNECT_S) if method == "GET" else self._client.timeout
            response = self._client.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise Transient(f"the server does not answer: {error or type(error).__name__}", where=where) from error
        code = response.status_code
        if code in _OVERLOADED:
            raise Transient(f"the server answers {code}", where=where)
        if code == _GENERATION_FAILED or code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Failed(f"the server answers {code}: {_words(response)}", where=where)
        if code != httpx.codes.OK:
            raise Poison(f"the server answers {code}: {_words(response)}", where=where)
        return response.json() if response.content else None


def _words(response: httpx.Response) -> str:
    """TGI's ``error``, or the plain text of a body that was refused before it was read."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text.strip()
