"""Odd input costs neither time nor other files, in real processes."""

from __future__ import annotations

import os

from trollmoves.tests.helpers.daemons import ServerClientPair, Testbed
from trollmoves.tests.helpers.waiting import until

ODD_YEARS = (-1969, -200, -1, 300, 3000, 8029)  # from 1970, as far as the file system stores them


def test_files_of_any_time_are_delivered(testbed: Testbed) -> None:
    """Files dated from year 1 to 9999 are delivered, also after a restart, and so are the files after them."""
    pair = ServerClientPair(testbed)
    feeder = pair.feeder
    pair.server.start()
    for name, years in zip(feeder.feed(len(ODD_YEARS)), ODD_YEARS, strict=True):
        path, time = feeder.folder / name, int(years * 365.25 * 86400)
        os.utime(path, (time, time))
        with path.open("ab"):  # announced with this time: closing without a change keeps it
            pass
    feeder.feed()
    pair.server.wait_for_line("announced", 2)
    pair.client.start()  # requests the announcements by a replay
    feeder.feed()
    until(lambda: feeder.all_delivered(pair.target), 30)
    assert "Traceback" not in pair.server.lines() + pair.client.lines()
