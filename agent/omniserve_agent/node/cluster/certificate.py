"""The certificate of the services' ports: from a mounted Secret, read again when it changes."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from omniserve_agent.node.errors import NodeError

REREAD_S = 30.0
CERTIFICATE, KEY = "tls.crt", "tls.key"  # as in Secrets of the type kubernetes.io/tls


class Certificate:
    """`context` is for servers; connections made after a change get the new certificate.

    NodeError where the directory holds no usable pair.
    """

    def __init__(self, directory: Path, reread_s: float = REREAD_S) -> None:
        self._directory, self._reread_s = directory, reread_s
        try:
            self._contents = self._read()
            self.context = self._load(_new_context())
        except (OSError, ValueError) as error:
            raise NodeError(
                f"--tls-dir {directory}: {error}; it must hold {CERTIFICATE} and {KEY}, both PEM"
            ) from error

    async def run(self) -> None:
        """Read again until cancelled."""
        while True:
            await asyncio.sleep(self._reread_s)
            self.reread()

    def reread(self) -> None:
        """Take a changed pair over; one that cannot be used leaves the last one in force."""
        try:
            contents = self._read()
            if contents == self._contents:
                return
            self._load(_new_context())  # a pair that fails half-way would spoil the one in use
            self._load(self.context)
        except (OSError, ValueError) as error:
            structlog.get_logger().warning("certificate not read", reason=str(error))
            return
        self._contents = contents
        structlog.get_logger().info("certificate read", directory=str(self._directory))

    def _read(self) -> tuple[bytes, bytes]:
        certificate, key = self._directory / CERTIFICATE, self._directory / KEY
        return certificate.read_bytes(), key.read_bytes()

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.load_cert_chain(self._directory / CERTIFICATE, self._directory / KEY)
        return context


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
