"""The floor: the least that a round can cost over gRPC with mutual TLS, without a framework.

A server and its sites as processes, one stream each. The model goes out in chunks of 1 MiB, cut
once for all sites, and comes back in the same chunks; the server adds each up as it comes, in
float32, and divides. A site has the whole model before it sends the first chunk back, as one that
trains would. Nothing is checked, kept, told or resumed.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from tests.benchmarks.federations import forks
from tests.benchmarks.federations.case import Case, Measured, asked
from tests.benchmarks.federations.memory import OwnMemory
from tests.benchmarks.federations.provisioned import HOST, Provisioned

CHUNK_BYTES = 1 << 20
SERVICE, METHOD = "floor", "Connect"
SITES = "tests.benchmarks.federations.floor_sites"

Floats = npt.NDArray[np.float32]


class Server:
    """One stream to each site, and the mean of what they send back."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._streams: asyncio.Queue[Any] = asyncio.Queue()
        self._done = asyncio.Event()

    async def run(self, federation: Provisioned) -> Measured:
        """All rounds of the case."""
        server = grpc.aio.server()
        handlers: dict[str, Any] = {METHOD: grpc.stream_stream_rpc_method_handler(self._connect)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        ca, certificate, key = (path.read_bytes() for path in federation.server_files())
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=ca, require_client_auth=True
        )
        server.add_secure_port(f"{HOST}:{federation.port}", credentials)
        await server.start()
        streams = [await self._streams.get() for _ in range(self._case.sites)]
        measured = await self._rounds(streams)
        self._done.set()
        await server.stop(None)
        return measured

    async def _connect(self, _: Any, stream: Any) -> None:
        self._streams.put_nowait(stream)
        await self._done.wait()

    async def _rounds(self, streams: list[Any]) -> Measured:
        memory, seconds = OwnMemory(), []
        memory.rests()
        model = np.random.default_rng(0).standard_normal(
            self._case.model_bytes // 4, dtype=np.float32
        )
        memory.begins()
        for _ in range(self._case.rounds + 1):
            started = time.perf_counter()
            model = await _mean(streams, model)
            seconds.append(time.perf_counter() - started)
        return Measured(seconds=seconds, rest_bytes=memory.rest, peak_bytes=memory.peak)


async def _mean(streams: list[Any], model: Floats) -> Floats:
    data = model.view(np.uint8)
    chunks = [data[at : at + CHUNK_BYTES].tobytes() for at in range(0, len(data), CHUNK_BYTES)]
    total = np.zeros_like(model)
    await asyncio.gather(*(_exchange(stream, chunks, total) for stream in streams))
    total /= len(streams)
    return total


async def _exchange(stream: Any, chunks: list[bytes], total: Floats) -> None:
    for chunk in chunks:
        await stream.write(chunk)
    at = 0
    while at < len(total):
        part = np.frombuffer(await stream.read(), np.float32)
        total[at : at + len(part)] += part
        at += len(part)


def main() -> None:
    """Run the case of the command line."""
    case = asked()
    with tempfile.TemporaryDirectory() as folder:
        federation = Provisioned.create(Path(folder), case.site_names)
        with forks.sites(SITES, folder, str(federation.port), *case.arguments):
            asyncio.run(Server(case).run(federation)).tell()


if __name__ == "__main__":
    main()
