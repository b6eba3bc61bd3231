"""The gate that asks whether an instruction is allowed here."""

from __future__ import annotations

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod
from hanse.secagg.messages import STAGES

from hanse_client.gates.masking import begin_training
from hanse_client.runtime import Resolve


def policy(resolve: Resolve) -> Mod:
    """Let pass what the policy allows; it is the order under way from here on."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type
        if kind in STAGES:
            resolve(context).asked(message)
        elif kind != MessageType.QUERY:
            runtime = resolve(context)
            order = runtime.accept(message)
            runtime.metrics.round.set(order.server_round)
            if kind == MessageType.TRAIN:
                begin_training(runtime, message)
        return call_next(message, context)

    return mod
