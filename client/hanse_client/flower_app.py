"""Hanse's ClientApp for a SuperNode: ``clientapp = "hanse_client.flower_app:app"``.

The SuperNode says which site it is of: ``--node-config 'site="/etc/hanse/site.toml"'``.
"""

from __future__ import annotations

from flwr.clientapp import ClientApp
from hanse.secagg.messages import STAGES
from hanse.superlink import HELLO

from hanse_client.node import answer_message

app = ClientApp()

app.train()(answer_message)
app.evaluate()(answer_message)
app.query()(answer_message)
for _name in (HELLO, *STAGES):
    app.query(_name.partition(".")[2])(answer_message)
