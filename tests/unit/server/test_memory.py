"""What the garbage collector looks through while a run goes on."""

from __future__ import annotations

import gc
import weakref

from hanse_server.memory import settling


class Ring:
    """Garbage that only a collector finds."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_set_aside_and_what_is_garbage_by_then_goes() -> None:
    ring = Ring()
    gone = weakref.ref(ring)
    with settling() as settle:
        del ring
        settle()
        assert gone() is None
        aside = gc.get_freeze_count()
        assert aside > 10_000
        later = weakref.ref(Ring())
        settle()  # again, for what came since
        assert later() is None
    assert gc.get_freeze_count() == 0


def test_a_process_that_has_set_objects_aside_itself_is_left_as_it_is() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with settling() as settle:
            settle()
            assert abs(gc.get_freeze_count() - before) < 1000
        assert gc.get_freeze_count() > before - 1000
    finally:
        gc.unfreeze()
