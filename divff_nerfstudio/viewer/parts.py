"""What the panel is composed of, and what an element of it can use."""

from __future__ import annotations

from collections.abc import Callable

from viser import GuiApi

from divff_nerfstudio.calibration import Calibration
from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.asking import Asking
from divff_nerfstudio.viewer.context import PanelContext
from divff_nerfstudio.viewer.events import Diary
from divff_nerfstudio.viewer.judging import Judging
from divff_nerfstudio.viewer.pointing import Marks, Pointing
from divff_nerfstudio.viewer.recording import Recording
from divff_nerfstudio.viewer.telling import Telling
from divff_nerfstudio.viewer.things import FindThings, KnownThings
from divff_nerfstudio.viewer.timeline import OverTime


class Parts:
    """The parts of the panel, none of which knows its elements, and what they share.

    Args:
        context: What they share.
        calibrate: See `Judging`.
        find: See `KnownThings`.
    """

    def __init__(
        self, context: PanelContext, calibrate: Callable[[str], Calibration | None], find: FindThings | None = None
    ):
        self.context = context
        self.answering = Answering(context)
        self.asking = Asking(context, self.answering)
        self.judging = Judging(context, self.answering, calibrate)
        self.things = KnownThings(context, self.answering, find)
        self.marks = Marks(context)
        self.pointing = Pointing(context, self.answering, self.asking, self.things)
        self.telling = Telling(context, self.answering, self.judging, self.things, self.pointing)
        self.diary = Diary(context, self.things)
        self.over_time = OverTime(context, self.answering, on=bool(context.kinds) and not context.viewer.training)
        self.recording = Recording(context, self.answering)

    @property
    def gui(self) -> GuiApi:
        """Where elements are added."""
        return self.context.viewer.gui

    @property
    def mute(self) -> bool:
        """Whether nothing can be asked, so that what is about questions is greyed out."""
        return not self.context.kinds

    def forget(self, client: int) -> None:
        """Drops what belongs to a client that has gone."""
        self.answering.forget(client)
        self.marks.forget(client)
