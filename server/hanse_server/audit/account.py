"""What a server's trail comes to, line by line, as long as each agrees with those before it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hanse.errors import TrailError

SENSELESS = (KeyError, TypeError, AttributeError, ValueError, OverflowError, OSError)
"""What comes of a line that no server wrote, in which values are of any type."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An instruction; the same one whenever it is told again."""

    site: str
    type: str
    round: str
    digest: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What arrived as a reply: the digests of its arrays and metrics, and the arrays' bytes."""

    blake3: str | None
    bytes: int
    metrics: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A round that was made durable, as far as the trail knows."""

    outcome: str
    model: str
    folded: dict[str, str]
    judged: dict[str, str]


@dataclass
class Account:
    """The trail so far.

    Attributes:
        lines: how many.
        asked: every instruction, by its id.
        accepted: of each instruction, what arrived; more than once only after a restart.
        kept: the rounds that hold, by number, from 1 on without gaps.
        released: of each round, the digests of the models that were released of it, those of
            rounds that were run again included.
        again: rounds that a crash took back, each as often as that was.
    """

    run: str
    lines: int = 0
    asked: dict[str, Asked] = field(default_factory=dict)
    accepted: dict[str, list[Arrived]] = field(default_factory=lambda: defaultdict(list))
    kept: dict[int, Kept] = field(default_factory=dict)
    released: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    again: list[int] = field(default_factory=list)
    _went_in: dict[str, int] = field(default_factory=dict)  # replies, each with its round
    _left_out: set[str] = field(default_factory=set)
    _joined: set[str] = field(default_factory=set)  # since the server was started
    _arrived: set[str] = field(default_factory=set)  # since then too

    def read(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take up lines, oldest first; of events that are not known here nothing follows.

        Raises:
            TrailError: naming the first line that contradicts those before it.
        """
        for line in lines:
            self.lines += 1
            step = _STEPS.get(str(line.get("event")))
            if self.lines == 1 and step is not Account._started:
                raise TrailError("line 1 of the trail does not tell of a server's start")
            if step is None:
                continue
            try:
                step(self, line)
            except TrailError as wrong:
                raise TrailError(f"line {self.lines} of the trail: {wrong.message}") from wrong
            except SENSELESS as senseless:
                raise TrailError(
                    f"line {self.lines} of the trail, {line.get('event')}, makes no sense"
                ) from senseless

    @property
    def last(self) -> int:
        """The last round that holds, 0 before the first."""
        return len(self.kept)

    # --- line by line -------------------------------------------------------------------------

    def _started(self, line: Mapping[str, Any]) -> None:
        if line["run"] != self.run:
            raise TrailError(f"it tells of run {line['run']}, this is run {self.run}")
        after = int(line["after"])
        if not 0 <= after <= self.last:
            raise TrailError(f"the server goes on after round {after}, which was never kept")
        for number in range(after + 1, self.last + 1):
            self.again.append(number)
            taken_back = self.kept.pop(number)
            for reply in (*taken_back.folded, *taken_back.judged):
                del self._went_in[reply]
        self._joined.clear()
        self._arrived.clear()
        self._left_out.clear()

    def _site_joined(self, line: Mapping[str, Any]) -> None:
        self._joined.add(line["site"])

    def _instructed(self, line: Mapping[str, Any]) -> None:
        asked = Asked(
            site=line["site"],
            type=line["type"],
            round=line["round"],
            digest=line["digest"],
            bytes=line["bytes"],
        )
        if self.asked.setdefault(line["id"], asked) != asked:
            raise TrailError(f"instruction {line['id']} is told anew, and as another")

    def _replied(self, line: Mapping[str, Any]) -> None:
        reply, site = line["id"], line["site"]
        self._check_asked(reply, site)
        if line["event"] == "accepted":
            if site not in self._joined:
                raise TrailError(f"a reply of {site} was accepted, which was not let in")
            if reply in self._arrived:
                raise TrailError(f"the reply to {reply} was accepted twice")
            told = {"bytes": line["bytes"], "metrics": line["metrics"]}
            self.accepted[reply].append(Arrived(blake3=line["blake3"], **told))
        self._arrived.add(reply)

    def _reply_left_out(self, line: Mapping[str, Any]) -> None:
        self._check_asked(line["id"], line["site"])
        self._left_out.add(line["id"])

    def _round_kept(self, line: Mapping[str, Any]) -> None:
        number = int(line["round"])
        if number != self.last + 1:
            raise TrailError(f"round {number} was kept after round {self.last}")
        kept = Kept(
            outcome=line["outcome"],
            model=line["model"],
            folded=dict(line["folded"]),
            judged=dict(line["judged"]),
        )
        for kind, replies in (("train", kept.folded), ("evaluate", kept.judged)):
            for reply, site in replies.items():
                self._put_in(reply, site, kind, number)
        self.kept[number] = kept
        self.released[number].add(line["released"])

    # --- what must hold -----------------------------------------------------------------------

    def _check_asked(self, reply: str, site: str) -> None:
        asked = self.asked.get(reply)
        if asked is None or asked.site != site:
            of_whom = "nobody" if asked is None else asked.site
            raise TrailError(f"{site} answered {reply}, which was asked of {of_whom}")

    def _put_in(self, reply: str, site: str, kind: str, number: int) -> None:
        self._check_asked(reply, site)
        if not self.accepted.get(reply) or self.asked[reply].type.partition(".")[0] != kind:
            raise TrailError(f"round {number} holds the reply to {reply}, which was not accepted")
        if reply in self._left_out:
            raise TrailError(f"round {number} holds the reply to {reply}, which was left out")
        if reply in self._went_in:
            before = self._went_in[reply]
            raise TrailError(
                f"the reply to {reply} of {site} was folded twice: in round {before} and in "
                f"round {number}"
            )
        self._went_in[reply] = number


_STEPS = {
    "started": Account._started,
    "joined": Account._site_joined,
    "instructed": Account._instructed,
    "accepted": Account._replied,
    "refused": Account._replied,
    "left_out": Account._reply_left_out,
    "kept": Account._round_kept,
}
