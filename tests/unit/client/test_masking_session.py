"""A session at the sites: sums come out right, and a cheating server is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hanse.aggregation import SecureAggregation
from hanse.errors import PeerError, PolicyError, SecureAggregationError, UpdateRangeError
from hanse.secagg.shamir import join
from hanse_client.secagg.identity import simulated
from hanse_client.secagg.session import Session

from tests.maskers import SESSION, Maskers, addressed

STAGES = ("keys", "shares", "training", "survivors", "unmasking")


def close(maskers: Maskers, cohort: int, **lost: list[str]) -> list[str]:
    """Run a session; assert that its mean is the plain one; of whom it is."""
    mean, names = maskers.run(**lost)
    plain, tolerance = maskers.mean(names), maskers.tolerance(cohort, names)
    for key, value in mean.items():
        assert (value.double() - plain[key]).abs().max() <= tolerance
    return names


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_sum_is_the_plain_one_whoever_is_lost(stage: str, lost: int) -> None:
    """Of six sites two may be lost, at whichever stage."""
    maskers = Maskers(6)
    gone = maskers.names[1 : 1 + lost]
    names = close(maskers, 6 - lost if stage == "keys" else 6, **{stage: gone})
    in_the_sum = stage in ("survivors", "unmasking")  # they had sent their update
    assert names == [n for n in maskers.names if in_the_sum or n not in gone]


@pytest.mark.parametrize("stage", ["shares", "training", "survivors", "unmasking"])
def test_one_too_many_lost_is_told_and_nothing_is_learnt(stage: str) -> None:
    maskers = Maskers(6)
    with pytest.raises(SecureAggregationError, match=r"needed|fewer than the 4"):
        maskers.run(**{stage: maskers.names[:3]})


def test_sites_may_be_lost_at_every_stage_of_one_session() -> None:
    maskers = Maskers(9)  # six have to stay
    names = close(maskers, 9, shares=["site-0"], training=["site-1"], unmasking=["site-2"])
    assert names == maskers.names[2:]


@pytest.mark.parametrize("lost", [0, 3, 6])
def test_a_larger_cohort_sums_alike(lost: int) -> None:
    maskers = Maskers(20)
    close(maskers, 20, training=maskers.names[:lost])


def test_what_is_sent_is_not_the_update() -> None:
    maskers = Maskers(3)
    sealed = maskers.share(maskers.announce())
    masked = maskers.mask(list(sealed))
    fixed = maskers.sessions["site-2"]._cohort.fixed_point
    plain = fixed.encode(maskers.updates["site-2"]["weight"].double().numpy())
    assert not np.any(masked["site-2"]["weight"].numpy() == plain)


# --- who takes part ---------------------------------------------------------------------------


def changed(maskers: Maskers, victim: str, **changes: object) -> Callable[[], object]:
    """The cohort with one announcement tampered with, shown to site-0."""
    members = [
        replace(member, **changes) if member.name == victim else member  # type: ignore[arg-type]
        for member in maskers.announce()
    ]
    return lambda: maskers.sessions["site-0"].share(members)


@pytest.mark.parametrize("key", ["mask_key", "share_key"])
def test_a_swapped_key_is_refused(key: str) -> None:
    maskers = Maskers(4)
    with pytest.raises(PeerError, match="signature of site 'site-2' is forged"):
        changed(maskers, "site-2", **{key: bytes(range(32))})()


def test_a_forged_signature_is_refused() -> None:
    with pytest.raises(PeerError, match="forged"):
        changed(Maskers(4), "site-1", signature=b"0" * 70)()


def test_another_weight_than_was_announced_is_refused() -> None:
    with pytest.raises(PeerError, match="site-3"):
        changed(Maskers(4), "site-3", weight=1e6)()


def test_an_announcement_of_another_session_is_refused() -> None:
    maskers = Maskers(4)
    members = maskers.announce()
    other = Session(
        replace(SESSION, server_round=2),
        maskers.settings,
        identity=simulated("site-2")(),
        weight=3.0,
        min_sites=2,
    )
    replayed = [other.announce() if member.name == "site-2" else member for member in members]
    with pytest.raises(PeerError, match="site-2"):
        maskers.sessions["site-0"].share(replayed)


def test_a_cohort_without_this_sites_own_keys_is_refused() -> None:
    maskers = Maskers(4)
    with pytest.raises(SecureAggregationError, match="what this site announced"):
        maskers.sessions["site-0"].share(maskers.announce()[1:])
    with pytest.raises(SecureAggregationError, match="what this site announced"):
        changed(Maskers(4), "site-0", mask_key=bytes(range(32)))()


def test_a_site_that_stands_twice_is_refused() -> None:
    maskers = Maskers(4)
    members = maskers.announce()
    with pytest.raises(SecureAggregationError, match="twice"):
        maskers.sessions["site-0"].share([*members, members[1]])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(SecureAggregationError, match="announced weight"):
        changed(Maskers(4), "site-1", weight=weight)()


def test_a_tiny_cohort_is_refused() -> None:
    maskers = Maskers(2, min_sites=3)
    with pytest.raises(PolicyError, match=r"cohort of 2 sites.*least, 3 .*min_sites"):
        maskers.share(maskers.announce())


def test_a_tiny_sum_is_refused() -> None:
    maskers = Maskers(4, min_sites=4)
    sealed = maskers.share(maskers.announce())
    masked = maskers.mask(list(sealed), "site-3")
    with pytest.raises(PolicyError, match=r"survivors of 3 sites.*least, 4"):
        maskers.consent(sorted(masked))


# --- stages in their order --------------------------------------------------------------------


def survivors_of(maskers: Maskers) -> tuple[dict[str, dict[str, bytes]], list[str]]:
    sealed = maskers.share(maskers.announce())
    return sealed, sorted(maskers.mask(list(sealed)))


@pytest.mark.parametrize("without", ["site-0", "site-1"])
def test_a_list_of_sharers_that_is_too_short_or_lacks_this_site_is_refused(without: str) -> None:
    maskers = Maskers(4)
    maskers.share(maskers.announce())
    short = ["site-0", "site-1"] if without != "site-0" else ["site-1", "site-2", "site-3"]
    with pytest.raises(SecureAggregationError, match=r"fewer than the 3|lack this site"):
        maskers.sessions["site-0"].begin_training(short)


def test_a_list_with_a_stranger_is_refused() -> None:
    maskers = Maskers(4)
    maskers.share(maskers.announce())
    with pytest.raises(SecureAggregationError, match="not of the session"):
        maskers.sessions["site-0"].begin_training([*maskers.names, "mallory"])


def test_a_session_trains_once() -> None:
    maskers = Maskers(4)
    survivors_of(maskers)
    with pytest.raises(SecureAggregationError, match="each comes once"):
        maskers.sessions["site-0"].begin_training(maskers.names)


def test_a_refused_list_cannot_be_tried_again() -> None:
    maskers = Maskers(4)
    maskers.share(maskers.announce())
    for names in (["site-0", "site-1"], maskers.names):
        with pytest.raises(SecureAggregationError):
            maskers.sessions["site-0"].begin_training(names)


def test_no_second_list_of_survivors_is_signed() -> None:
    maskers = Maskers(4)
    _, names = survivors_of(maskers)
    maskers.sessions["site-0"].consent(names)
    with pytest.raises(SecureAggregationError, match="each comes once"):
        maskers.sessions["site-0"].consent(names[:3])


def test_both_kinds_of_share_cannot_be_asked_for() -> None:
    """A second request, for which a survivor of the first is lost, is refused."""
    maskers = Maskers(4)
    sealed, names = survivors_of(maskers)
    signatures = maskers.consent(names)
    site = maskers.sessions["site-0"]
    site.unmask(names, signatures, addressed(sealed, "site-0"))
    with pytest.raises(SecureAggregationError, match="each comes once"):
        site.unmask(names[:3], signatures, addressed(sealed, "site-0"))


def test_a_replayed_unmasking_is_refused() -> None:
    maskers = Maskers(4)
    sealed, names = survivors_of(maskers)
    signatures = maskers.consent(names)
    site = maskers.sessions["site-0"]
    site.unmask(names, signatures, addressed(sealed, "site-0"))
    with pytest.raises(SecureAggregationError, match="each comes once"):
        site.unmask(names, signatures, addressed(sealed, "site-0"))


def test_another_list_than_was_signed_is_not_unmasked() -> None:
    maskers = Maskers(4)
    sealed, names = survivors_of(maskers)
    signatures = maskers.consent(names)
    with pytest.raises(SecureAggregationError, match="not the one that was signed"):
        maskers.sessions["site-0"].unmask(names[:3], signatures, addressed(sealed, "site-0"))


def test_a_server_that_tells_two_lists_gets_no_unmasking() -> None:
    """Half the sites are told that site-5 is lost: neither list has enough signatures."""
    maskers = Maskers(6)
    sealed, names = survivors_of(maskers)
    told = {name: names[:5] if at < 3 else names for at, name in enumerate(names)}
    signatures = {name: maskers.sessions[name].consent(told[name]) for name in names}
    for name in names[:5]:
        agreeing = {n: s for n, s in signatures.items() if told[n] == told[name]}
        for shown, why in ((signatures, PeerError), (agreeing, SecureAggregationError)):
            site = maskers.sessions[name]
            with pytest.raises(why, match=r"forged|are needed"):
                site.unmask(told[name], shown, addressed(sealed, name))
            site._stage = type(site._stage).CONSENTED  # as if it were asked for the first time


def test_too_few_signatures_unmask_nothing() -> None:
    maskers = Maskers(4)
    sealed, names = survivors_of(maskers)
    signatures = maskers.consent(names, "site-1", "site-2")
    with pytest.raises(SecureAggregationError, match="2 survivors signed the list, 3 are needed"):
        maskers.sessions["site-0"].unmask(names, signatures, addressed(sealed, "site-0"))


def test_only_those_that_signed_count_for_the_policy() -> None:
    """The others may be announcements of an earlier session, whose keys the server knows."""
    maskers = Maskers(6, min_sites=5)
    sealed, names = survivors_of(maskers)
    signatures = maskers.consent(names, "site-4", "site-5")
    with pytest.raises(PolicyError, match=r"signatures of 4 sites.*least, 5"):
        maskers.sessions["site-0"].unmask(names, signatures, addressed(sealed, "site-0"))


def test_a_forged_share_is_refused() -> None:
    maskers = Maskers(4)
    sealed, names = survivors_of(maskers)
    signatures = maskers.consent(names)
    shares = addressed(sealed, "site-0")
    for forged in (b"", shares["site-1"][:-1] + b"\0", addressed(sealed, "site-2")["site-1"]):
        site = maskers.sessions["site-0"]
        site._stage = type(site._stage).CONSENTED
        with pytest.raises(PeerError, match="share of site 'site-1'"):
            site.unmask(names, signatures, shares | {"site-1": forged})


def test_a_survivor_reveals_seeds_of_survivors_and_keys_of_the_lost() -> None:
    maskers = Maskers(4)
    sealed = maskers.share(maskers.announce())
    names = sorted(maskers.mask(list(sealed), "site-3"))
    revealed = maskers.unmask(names, maskers.consent(names), sealed)

    def secret(owner: str) -> bytes:
        holders = enumerate(maskers.names, start=1)
        return join({at: revealed[n][owner] for at, n in holders if n in revealed})

    assert secret("site-0") == maskers.sessions["site-0"]._seed
    assert secret("site-3") == maskers.sessions["site-3"]._mask_key.private_bytes_raw()


# --- what can be summed -----------------------------------------------------------------------


def test_an_update_beyond_the_range_is_refused() -> None:
    maskers = Maskers(4, settings=SecureAggregation(enabled=True, range=0.5))
    maskers.updates["site-3"]["bias"][0] = 0.6  # of the largest weight
    with pytest.raises(UpdateRangeError, match=r"range = 0\.5"):
        maskers.mask(list(maskers.share(maskers.announce())))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_counters_and_flags_are_refused(dtype: torch.dtype) -> None:
    maskers = Maskers(4)
    maskers.updates["site-0"]["bias"] = torch.zeros(3, dtype=dtype)
    with pytest.raises(SecureAggregationError, match="only floating-point"):
        maskers.mask(list(maskers.share(maskers.announce())))
