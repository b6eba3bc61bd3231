"""What a site answers to the stages of a secure round, with at most one session open."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord
from hanse.errors import SecureAggregationError
from hanse.job import Job
from hanse.secagg.cohort import SessionId
from hanse.secagg.messages import (
    KEYS,
    SHARES,
    SITES,
    SURVIVORS,
    pack_announcement,
    pack_named,
    read_cohort,
    read_named,
    read_names,
    read_session,
)

from hanse_client.secagg.identity import OpenIdentity
from hanse_client.secagg.session import Session
from hanse_client.site import Site


class Masking:
    """A site's part in secure aggregation; for one thread at a time.

    Sessions live in memory alone: a site that was restarted is lost to the session that was
    under way, and nothing on its disk can unmask an update.

    Args:
        open_identity: gives the identity that a session signs with.
        min_sites: the fewest sites whose sum this site lets the server learn.
    """

    def __init__(self, open_identity: OpenIdentity, *, min_sites: int) -> None:
        self._open_identity = open_identity
        self._min_sites = min_sites
        self._session: Session | None = None

    def answer(
        self,
        stage: str,
        session: SessionId,
        job: Job,
        config: ConfigRecord,
        weight: Callable[[], float],
    ) -> ConfigRecord:
        """The reply to a stage without training.

        Args:
            weight: gives this site's weight; asked when a session begins.

        Raises:
            SecureAggregationError, PeerError, PolicyError: as :class:`Session` tells.
        """
        if stage == KEYS:
            return pack_announcement(self._begin(session, job, weight()).announce())
        current = self.current(session)
        if stage == SHARES:
            return ConfigRecord(pack_named("shares", current.share(read_cohort(config))))
        survivors = read_names(config, SITES)
        if stage == SURVIVORS:
            return ConfigRecord({"signature": current.consent(survivors)})
        signatures, sealed = read_named(config, "signatures"), read_named(config, "shares")
        revealed = current.unmask(survivors, signatures, sealed)
        self._session = None  # and its secrets
        return ConfigRecord(pack_named("revealed", revealed))

    def current(self, session: SessionId) -> Session:
        """The session under way, if it is the one that is asked for.

        Raises:
            SecureAggregationError: if it is not.
        """
        if self._session is None or self._session.id != session:
            raise SecureAggregationError(
                "the session is not open at this site: it has ended, another has begun, or the "
                "client was started again since"
            )
        return self._session

    def _begin(self, session: SessionId, job: Job, weight: float) -> Session:
        if self._session is not None and self._session.id == session:
            raise SecureAggregationError("the session has begun at this site already")
        self._session = Session(
            session,
            job.secure_aggregation,
            identity=self._open_identity(),
            weight=weight,
            min_sites=self._min_sites,
        )
        return self._session


def masking_of(site: Site, open_identity: OpenIdentity) -> Masking:
    """A site's part in secure aggregation, as its policy has it."""
    return Masking(open_identity, min_sites=site.policy.secure_aggregation.min_sites)


def session_of(job: Job, server_round: int, run_id: int, config: ConfigRecord) -> SessionId:
    """The session that a message is of.

    Raises:
        SecureAggregationError: if it names none, or the job asks for no secure aggregation.
    """
    if not job.secure_aggregation.enabled:
        raise SecureAggregationError("the job asks for no secure aggregation")
    return SessionId(
        run_id=run_id, server_round=server_round, token=read_session(config), job=job.digest
    )
