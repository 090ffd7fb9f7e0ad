"""A real S3 server for tests: moto's, as a process of its own, which forgets everything when it ends.

S3 answers one put of two at once to one key; moto looks and then stores, so here it takes one request at a time.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import boto3
import httpx
from tests.certificates import Authority
from tests.polling import until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HOST: Final = "127.0.0.1"
REGION: Final = "us-east-1"
_ROOT: Final = Path(__file__).resolve().parent.parent


class S3Server:
    """One server. As a context manager: it answers inside the block, and is gone after it.

    Args:
        log: file of its output.
        port: of loopback; 0 takes a free one.
        authority: signs its certificate; without one it speaks no TLS.
    """

    def __init__(self, log: Path, *, port: int = 0, authority: Authority | None = None) -> None:
        self.port = port or _free_port()
        self.access_key = "access"
        self.secret_key = "secret"
        self._log = log
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"{'https' if self._authority else 'http'}://{HOST}:{self.port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client of it needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until it takes connections."""
        command = [sys.executable, "-m", "tests.s3", str(self.port)]
        if self._authority is not None:
            signed = self._authority.sign("s3")
            command += [str(signed.certificate), str(signed.key)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=subprocess.STDOUT)
        until(self._answers, lambda: f"moto's server did not start: {self._log.read_text()}", deadline_s=60)

    def stop(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def client(self, service: str = "s3") -> Any:
        """boto3's client of it, to look at it from another side than the one under test."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=str(self._authority.path) if self._authority is not None else None,
        )

    def make_bucket(self, name: str) -> None:
        """Makes an empty bucket."""
        self.client().create_bucket(Bucket=name)

    def ask_for_credentials(self) -> None:
        """From here on only a new user's keys, now `access_key` and `secret_key`, are taken."""
        users = self.client("iam")
        users.create_user(UserName="writer")
        policy = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'
        users.put_user_policy(UserName="writer", PolicyName="all", PolicyDocument=policy)
        key = users.create_access_key(UserName="writer")["AccessKey"]
        self.access_key, self.secret_key = key["AccessKeyId"], key["SecretAccessKey"]
        httpx.post(f"{self.url}/moto-api/reset-auth", content=b"0").raise_for_status()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"moto's server ended: {self._log.read_text()}"
        try:
            with socket.create_connection((HOST, self.port), timeout=1):
                return True
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _serve(port: int, *certificate: str) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.server import MotoRequestHandler
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()

    def one_at_a_time(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        with turn:
            return list(moto(environment, start))

    tls = (certificate[0], certificate[1]) if certificate else None
    make_server(
        HOST, port, one_at_a_time, threaded=True, request_handler=MotoRequestHandler, ssl_context=tls
    ).serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *sys.argv[2:])
