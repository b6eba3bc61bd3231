"""What an instruction asks for, read from the server's text and arrays, and found to make sense."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from functools import cached_property, lru_cache

from flwr.app import Message, RecordDict
from hanse.aggregation import PLAIN, Encoding
from hanse.config import validate
from hanse.encodings import CODECS, ENCODING, KEPT, TRAINABLE_ONLY
from hanse.errors import JobError, PolicyError
from hanse.flower import JOB, PROXIMAL_MU, ROUND, config_of, only_arrays, size_of
from hanse.job import FOR_SITES, Job
from hanse.parsing import parse_json
from hanse.plain import plain

LONGEST_JOB = 1_000_000
"""Characters of a job's text."""

CLOCKS_APART_SECONDS = 300.0
"""So far the clocks of both ends may differ."""


class Asked:
    """What the content of an instruction asks for; each part is read when it is first looked at.

    It keeps no model longer than who sent it does.
    """

    def __init__(self, content: RecordDict) -> None:
        self._content = weakref.ref(content)
        self.config = config_of(content)

    @cached_property
    def job(self) -> Job:
        """The job.

        Raises:
            JobError: if there is none, or it says what is no business of a site.
        """
        text = self.config.get(JOB)
        if not isinstance(text, str):
            raise JobError(f"the instruction carries no {JOB}: this site runs only Hanse's jobs")
        if len(text) > LONGEST_JOB:
            raise JobError(f"{JOB} of {len(text)} characters passes the limit, {LONGEST_JOB}")
        return _read_job(text)

    @cached_property
    def server_round(self) -> int:
        """The round.

        Raises:
            JobError: if it is no whole number.
        """
        number = self.config.get(ROUND)
        if not isinstance(number, int):
            raise JobError(f"{ROUND} = {plain(repr(number), 64)} is not a whole number")
        return number

    @cached_property
    def model_bytes(self) -> int:
        """The size of the model.

        Raises:
            JobError: if there is none.
        """
        try:
            arrays = only_arrays(self._content() or RecordDict())
        except ValueError as error:
            raise JobError(f"the instruction holds no model: {error}") from error
        return sum(map(size_of, arrays.values()))

    @cached_property
    def proximal_mu(self) -> float | None:
        """What the strategy asks for of FedProx; None if nothing.

        Raises:
            PolicyError: if it is no number that there can be.
        """
        mu = self.config.get(PROXIMAL_MU)
        if mu is None:
            return None
        if not isinstance(mu, int | float) or not math.isfinite(mu) or mu < 0:
            said = plain(repr(mu), 64)
            raise PolicyError(f"{PROXIMAL_MU} = {said} is not a finite number of at least 0")
        return float(mu)

    @cached_property
    def encoding(self) -> Encoding:
        """The encoding that an update is wanted in; plain for one that this version does not know.

        Raises:
            JobError: if what is asked for makes no sense, or is asked of a masked update.
        """
        asked = {field: self.config[key] for field, key in _ENCODING.items() if key in self.config}
        if isinstance(asked.get("name"), str) and asked["name"] not in (PLAIN, *CODECS):
            asked["name"] = PLAIN
        wanted = validate(asked, Encoding, JobError, where=ENCODING)
        if self.job.secure_aggregation.enabled and not wanted.plain:
            raise JobError(f"{ENCODING}: the update of a secure round is masked, and leaves whole")
        return wanted


_ENCODING = {"name": ENCODING, "kept": KEPT, "trainable_only": TRAINABLE_ONLY}


def asked_in(content: RecordDict) -> Asked:
    """What an instruction asks for; many simulated sites are sent one and the same content."""
    global _last
    of, asked = _last
    if of() is not content:
        asked = Asked(content)
        _last = weakref.ref(content), asked
    return asked


_last: tuple[Callable[[], RecordDict | None], Asked] = lambda: None, Asked(RecordDict())


@lru_cache(maxsize=4)  # many simulated sites are asked for the same
def _read_job(text: str) -> Job:
    """The job that a text describes.

    Raises:
        JobError: if it describes none, or says what is no business of a site.
    """
    try:
        data = parse_json(text)
    except ValueError as malformed:
        raise JobError(f"{JOB} is not JSON: {malformed}") from malformed
    job = validate(data, Job, JobError, where=JOB)
    foreign = sorted(job.model_fields_set - set(FOR_SITES))
    if foreign:
        raise JobError(f"{JOB}: {foreign[0]} is the server's own, and is not taken from it here")
    return job


def check_addressed(message: Message, node_id: int) -> None:
    """Refuse an instruction for another site, or one whose time is over.

    Raises:
        PolicyError: if it is.
    """
    asked = message.metadata
    if asked.dst_node_id != node_id:
        raise PolicyError(f"the instruction is for node {asked.dst_node_id}, this is {node_id}")
    if asked.ttl <= 0:
        return  # of no time, as in a simulation
    over = time.time() - (asked.created_at + asked.ttl)
    if not over <= CLOCKS_APART_SECONDS:  # so that NaN is not
        raise PolicyError(
            f"the instruction's time was over {over:.0f} s ago (ttl = {asked.ttl:g} s)",
            remedy="Set this machine's clock, if it is wrong; else the server sends old messages.",
        )
