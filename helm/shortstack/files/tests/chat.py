"""``helm test``: the gateway lists a base model, and it answers. Waits for its server, which starts after the rest."""

from __future__ import annotations

import os
import sys
import time

import httpx


def main() -> int:
    """Asks until there is an answer or the time is over; 0 if there was one."""
    base = os.environ["SHORTSTACK_GATEWAY_URL"] + "/v1"
    headers = {"Authorization": f"Bearer {os.environ['SHORTSTACK_API_KEY']}"}
    deadline = time.monotonic() + float(os.environ["TIMEOUT_S"])
    said = "nothing was tried"
    with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
        while time.monotonic() < deadline:
            try:
                said = ask(client)
            except (httpx.HTTPError, LookupError) as error:
                said = f"{type(error).__name__}: {error}"
            else:
                print(said)
                return 0
            time.sleep(2)
    print(f"no answer in time; last: {said}", file=sys.stderr)
    return 1


def ask(client: httpx.Client) -> str:
    """One question to the first base model, and its answer."""
    models = client.get("/models").raise_for_status().json()["data"]
    bases = [model["id"] for model in models if not model["id"].startswith("ft:")]
    if not bases:
        raise LookupError("no base model is served yet")
    question = [{"role": "user", "content": "Say hello."}]
    body = {"model": bases[0], "messages": question, "max_tokens": 8, "temperature": 0}
    reply = client.post("/chat/completions", json=body)
    if reply.is_error:
        raise LookupError(f"HTTP {reply.status_code}: {reply.text[:300]}")
    text = reply.json()["choices"][0]["message"]["content"]
    if not text.strip():
        raise LookupError(f"{bases[0]} answered without a word")
    return f"{bases[0]}: {text}"


if __name__ == "__main__":
    sys.exit(main())
