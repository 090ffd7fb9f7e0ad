"""Gateway: OpenAI's API over the stack's models, files and fine-tuning jobs."""

from __future__ import annotations

import sys

from shortstack.core.clock import SystemClock
from shortstack.core.health import Health
from shortstack.core.lifecycle import run_service, run_until_signal
from shortstack.core.telemetry import Telemetry
from shortstack.declarations.base_models import BaseModels
from shortstack.gateway.config import GatewayConfig
from shortstack.gateway.database import open_database
from shortstack.gateway.gateway import Gateway, Resources
from shortstack.gateway.keys.store import KeyStore, ensure_first_key
from shortstack.gateway.server import ApiServer
from shortstack.storage.blobs import BlobStore


def run(config: GatewayConfig) -> int:
    """Builds the gateway and answers until SIGTERM."""
    clock = SystemClock()
    with Telemetry.start("gateway", config) as telemetry:
        engine = open_database(config.database())
        ensure_first_key(KeyStore(engine, clock), config.bootstrap_key, config.folder / "key")
        base_models = BaseModels(config.base_models, config.model_aliases)
        blobs, health = BlobStore.open(config.storage_url), Health(config.liveness_s, clock)
        gateway = Gateway(Resources(config, engine, blobs, base_models, telemetry, health, clock))
        components = [ApiServer(gateway, config.host, config.http_port)]
        return run_until_signal(components, grace_s=config.shutdown_grace_s, log=telemetry.log)


def main() -> None:
    """The command."""
    sys.exit(run_service(lambda: run(GatewayConfig())))


if __name__ == "__main__":
    main()
