"""Which site each of Flower's nodes speaks for: each is asked for its name when it comes."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from hanse.errors import NameTakenError, NotRegisteredError
from hanse.flower import CONFIG
from hanse.identity import SITE_NAME
from hanse.plain import plain
from hanse.superlink import HELD, HELLO, MOST_SETTLED, SITE, SLIP, VERSION, Slip

from hanse_server.audit import ServerTrail
from hanse_server.metrics import ServerMetrics
from hanse_server.superlink.post import Post

log = logging.getLogger("hanse.link")

ASK_AGAIN_SECONDS = 30.0
"""After which a node that has not given its name is asked again."""


class Nodes:
    """The nodes that are there, and the sites that they speak for.

    A name is what the node says: who may connect is for the SuperLink to decide. Of two nodes
    with the same name the first has it, until it is gone.

    Args:
        known: names of sites that were there before.
        holds: is called with a site that has come, and the ids of the replies that it holds.
    """

    def __init__(
        self,
        post: Post,
        run_id: int,
        metrics: ServerMetrics,
        trail: ServerTrail,
        known: Iterable[str],
        holds: Callable[[str, list[str]], None],
    ) -> None:
        self._post = post
        self._run_id = run_id
        self._metrics = metrics
        self._trail = trail
        self._known = set(known)
        self._holds = holds
        self._sites: Mapping[int, str] = {}  # replaced, never changed: other threads read it
        self._asked: dict[str, tuple[int, float]] = {}  # by Flower's id of the question

    @property
    def sites(self) -> Mapping[int, str]:
        """The names of the sites that are there, by Flower's id of their nodes."""
        return self._sites

    @property
    def known(self) -> frozenset[str]:
        """The names of all sites that are there or were."""
        return frozenset(self._known)

    def of(self, site: str) -> int | None:
        """The node that speaks for a site; None if none does."""
        return next((node for node, name in self._sites.items() if name == site), None)

    def look(self, now: float) -> set[str]:
        """See who is there, and ask who is new for a name.

        Returns:
            The sites that are gone.
        """
        there = self._post.nodes()
        gone = {site for node, site in self._sites.items() if node not in there}
        for site in gone:
            self._metrics.connected.labels(site).set(0)
            self._trail.left(site, "its node is gone")
        self._sites = {node: site for node, site in self._sites.items() if node in there}
        for question, (_, since) in list(self._asked.items()):
            if now - since > ASK_AGAIN_SECONDS:
                del self._asked[question]
        asked = {node for node, _ in self._asked.values()}
        for node in sorted(there - self._sites.keys() - asked):
            self._asked[self.greet(node)] = node, now
        return gone

    def greet(self, node: int, settled: Iterable[str] = ()) -> str:
        """Ask a node for its site's name, and say what is settled; Flower's id of the question."""
        slip = Slip(instruction=uuid.uuid4().hex, run_id=self._run_id, settled=tuple(settled))
        content = RecordDict({SLIP: slip.record()})
        return self._post.send(node, content, HELLO, "", ASK_AGAIN_SECONDS)

    def listen(self) -> None:
        """Take in the names that were given."""
        if not self._asked:
            return
        for reply in self._post.pull(self._asked):
            node, since = self._asked[reply.metadata.reply_to_message_id]
            if reply.has_error():
                reason = plain(reply.error.reason or "", 300)
                log.warning("node %d does not give its site's name: %s", node, reason)
                continue  # it is asked again when the question has grown old
            del self._asked[reply.metadata.reply_to_message_id]
            if not self._introduce(node, reply):
                self._asked[reply.metadata.reply_to_message_id] = node, since

    def _introduce(self, node: int, reply: Message) -> bool:
        told = reply.content.config_records.get(CONFIG, ConfigRecord())
        site, version = str(told.get(SITE)), str(told.get(VERSION))
        if not re.fullmatch(SITE_NAME, site):
            refused = NotRegisteredError(f"node {node} gives no name that a site can have")
            log.warning("%s", refused.message)
            return False
        if self.of(site) is not None:
            taken = NameTakenError(f"node {node} calls itself {site!r}, as another does")
            log.warning("%s", taken.message)
            self._trail.turned_away(site, f"node {node}", taken)
            return False
        held = told.get(HELD, [])
        if isinstance(held, list):
            self._holds(site, [str(each) for each in held[:MOST_SETTLED]])
        self._sites = {**self._sites, node: site}
        self._known.add(site)
        self._metrics.connected.labels(site).set(1)
        self._trail.joined(site, f"node {node}", version)
        log.info("site %s is there, as node %d", site, node)
        return True
