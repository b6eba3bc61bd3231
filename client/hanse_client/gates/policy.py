"""The gate that asks whether an instruction is allowed here."""

from __future__ import annotations

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod

from hanse_client.runtime import Resolve


def policy(resolve: Resolve) -> Mod:
    """Let pass what the policy allows; it is the order under way from here on."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type != MessageType.QUERY:
            runtime = resolve(context)
            order = runtime.accept(message)
            runtime.metrics.round.set(order.server_round)
        return call_next(message, context)

    return mod
