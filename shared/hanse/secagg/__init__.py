"""Secure aggregation: the server learns the sum of the sites' updates, and no single one.

The protocol is that of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving
Machine Learning") with its consistency check. Its stages, each a message from the server to the
sites and a reply:

1. *masking keys*: every site announces two fresh X25519 keys, signed with the key of its
   certificate. Those that answer are the *cohort*.
2. *masking shares*: every site checks all announcements of the cohort, and splits two secrets,
   the seed of its own mask and its masking key, among all of it (Shamir 1979), encrypted for
   each. Those that answer are the *sharers*.
3. *training*: every sharer trains, and sends its update as integers modulo 2^32 plus its own
   mask plus one mask for each other sharer, with opposite signs at the two ends. Those that
   answer are the *survivors*.
4. *survivors*: every survivor signs the one list of survivors that it was told.
5. *unmasking*: shown enough signatures of the same list, every survivor gives for each site its
   share of the mask's seed if that site survived, and of the masking key if it did not.

Shares travel to their holders with stage 5 and not before training, so that the training message
is the same for all sites and is encoded once. They are authenticated by their sender and made
once a session, so that the server gains nothing by holding them back.

Guarantee: whatever the server does, it learns of the updates of a session at most their weighted
sum over one set of survivors, which holds at least ``threshold`` of the cohort and at least as
many sites as the policy of every site in it asks for. Beside it the server sees what sites
announce: weights, metrics, who takes part, whose update is beyond the range.

Assumptions: the certificate authority issues no false sites (a site that pins its peers need not
trust it); of the cohort less than ``2 * threshold - 1`` collude with the server (so that two lists
of survivors cannot both be signed); a site's secrets of a session are kept in memory and die with
it. A site that cheats can spoil a sum, as it can in plain aggregation.

It hides one update among others, and no more. The sum itself is protected by the sites' noise
alone: each adds all of what its own guarantee needs, and secure aggregation is never counted. A
site whose weight is far above all others is most of the sum. Without differential privacy a
site's update is a function of the model it was sent, and the sums of two sessions that differ by
one site tell that site's update.
"""
