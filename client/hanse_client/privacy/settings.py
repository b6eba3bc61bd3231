"""How a site makes its steps: settings of time and memory, none of privacy."""

from __future__ import annotations

from typing import Literal, TypeAlias

from hanse.config import Settings
from pydantic import PositiveInt

BackendName: TypeAlias = Literal["auto", "bookkeeping", "ghost", "hooks"]
Precision: TypeAlias = Literal["float32", "bfloat16"]


class EngineSettings(Settings):
    """``[engine]`` of ``site.toml``: the guarantee is the same whatever stands here.

    Attributes:
        backend: how the clipped sums of private steps are made; ``auto`` is the fastest that can
            train the model.
        physical_batch: records that go through the model at once, at most; by default as many
            as fit into a GiB.
        precision: of the passes through the model, with and without privacy; gradients are
            always clipped and summed in float32. Private steps in ``bfloat16`` take the backend
            ``bookkeeping``.
        graphs: whether passes of private steps on a GPU may be recorded once and replayed; not
            for models that decide in Python, anew at each pass, what they do.
    """

    backend: BackendName = "auto"
    physical_batch: PositiveInt | None = None
    precision: Precision = "float32"
    graphs: bool = True
