"""One target under atheris, in a child process of its own, since libFuzzer never gives one back."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from random import Random

import atheris

from tests.fuzz.watch import Watch, tighten_memory

_PACKAGES = ["hanse", "hanse_server", "hanse_client"]

with atheris.instrument_imports(include=_PACKAGES):
    from tests.fuzz.targets import TARGETS

_HANG_SECONDS = 30  # after which libFuzzer ends the process
_LONGEST = 1 << 16
_BY_FORMAT = 0.6
"""How many of the changes are made in the terms of the format."""


def fuzz(name: str, inputs: int, seed: int, folder: Path, result: Path) -> int:
    """Run ``inputs`` inputs in a child, which writes what came of them to ``result``.

    Returns:
        How the child ended: 0 if it was of its own accord.
    """
    child = os.fork()
    if child == 0:
        try:
            log = os.open(result.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            _fuzz(name, inputs, seed, folder, result)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fuzz(name: str, inputs: int, seed: int, folder: Path, result: Path) -> None:
    logging.disable(logging.CRITICAL)  # refusals are logged, a million times
    warnings.simplefilter("ignore")
    opened, corpus = folder / "target", folder / "corpus"
    opened.mkdir()
    corpus.mkdir()
    with atheris.instrument_imports(include=_PACKAGES):  # tasks are loaded by name
        target = TARGETS[name](opened)
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)
    watch = Watch(target)

    def one(data: bytes) -> None:
        watch.run(data)
        if watch.inputs % 1000 == 0 or watch.inputs == inputs:
            _write(result, watch)
            tighten_memory()
        if watch.inputs == inputs:
            os._exit(0)

    def change(data: bytes, longest: int, number: int) -> bytes:
        randomness = Random(number)
        if target.mutate is not None and randomness.random() < _BY_FORMAT:
            return target.mutate(data, randomness)[:longest]
        return bytes(atheris.Mutate(data, longest))

    options = {
        "seed": seed,
        "max_len": _LONGEST,
        "timeout": _HANG_SECONDS,
        "rss_limit_mb": 0,  # the watch has its own
        "artifact_prefix": f"{result.parent}/{name}-",
    }
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)]
    atheris.Setup(arguments, one, custom_mutator=change)
    tighten_memory()
    atheris.Fuzz()


def _write(result: Path, watch: Watch) -> None:
    findings = [vars(each) | {"data": each.data.hex()} for each in watch.findings]
    told = {
        "inputs": watch.inputs,
        "refused": watch.refused,
        "peak": watch.peak,
        "findings": findings,
    }
    result.write_text(json.dumps(told), encoding="utf-8")
