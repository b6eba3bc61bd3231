"""The sites of the floor: each sends back what it got, once it has it all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc

from tests.benchmarks.federations.case import Case, asked
from tests.benchmarks.federations.floor import METHOD, SERVICE
from tests.benchmarks.federations.forks import fork_each
from tests.benchmarks.federations.provisioned import Provisioned


def live(federation: Provisioned, case: Case, name: str) -> None:
    """Answer until the server ends the stream."""
    ca, certificate, key = (path.read_bytes() for path in federation.site_files(name))
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    back: SimpleQueue[bytes] = SimpleQueue()
    with grpc.secure_channel(federation.address, credentials) as channel:
        grpc.channel_ready_future(channel).result(60)
        connect: Any = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        came = connect(iter(back.get, None))
        for model in _models(came, case.model_bytes):
            for chunk in model:
                back.put(chunk)


def _models(came: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    chunks, missing = list[bytes](), size
    for chunk in came:
        chunks.append(chunk)
        missing -= len(chunk)
        if missing == 0:
            yield chunks
            chunks, missing = [], size


def main() -> None:
    """Fork the sites of the command line: the federation's folder and port, and the case."""
    folder, port, *arguments = sys.argv[1:]
    case = asked(arguments)
    fork_each(case.site_names, partial(live, Provisioned(Path(folder), int(port)), case))


if __name__ == "__main__":
    main()
