"""Searching by spans of study date and time, so narrow that a PACS which cuts off long answers has nothing to cut off.

DIMSE has no paging, and DICOMweb's shifts while studies arrive. A PACS that gives only its first N results may say so
by a failure or not at all (PS3.4 C.4.1). An answer that was cut off, or is long enough to have been, is therefore asked
for again in halves. Whatever any of the answers holds counts.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from client.archive.pacs.link import Study

_LAST_MINUTE = 24 * 60 - 1
_FIRST_SPAN, _LONGEST_SPAN = 8, 3660  # days


@dataclass(frozen=True)
class Window:
    """Study dates from `first` to `last`, and if that is one day, minutes of the day; all inclusive."""

    first: datetime.date
    last: datetime.date
    begin: int = 0
    end: int = _LAST_MINUTE

    def dates(self) -> str:
        """(0008,0020) Study Date to match (range matching, PS3.4 C.2.2.2.5)."""
        return self.first.strftime("%Y%m%d") if self.first == self.last else f"{self.first:%Y%m%d}-{self.last:%Y%m%d}"

    def times(self) -> str:
        """(0008,0030) Study Time to match; empty for whole days."""
        if (self.begin, self.end) == (0, _LAST_MINUTE):
            return ""
        return f"{self.begin // 60:02}{self.begin % 60:02}00-{self.end // 60:02}{self.end % 60:02}59.999999"

    def halves(self, by_minute: bool) -> tuple[Window, ...]:
        """Both halves; nothing for a single day, or if `by_minute` a single minute."""
        if self.first < self.last:
            middle = self.first + (self.last - self.first) // 2
            return Window(self.first, middle), Window(middle + datetime.timedelta(days=1), self.last)
        if self.begin == self.end or not by_minute:
            return ()
        noon = (self.begin + self.end) // 2
        return Window(self.first, self.last, self.begin, noon), Window(self.first, self.last, noon + 1, self.end)


@dataclass(frozen=True)
class Answer:
    """What one search has found, and whether the PACS said that there is more."""

    studies: list[Study]
    cut: bool = False


class TooManyResultsError(Exception):
    """A single minute has so many studies that some may have been cut off."""


@dataclass(frozen=True)
class Search:
    """A search by windows. `ask` searches one, and answers of `most` or more studies are asked for in halves.

    by_minute: halve down to single minutes and raise TooManyResultsError there; else down to days, where `ask` has
    other means.
    """

    ask: Callable[[Window], Answer]
    most: int
    by_minute: bool

    def between(self, first: datetime.date, last: datetime.date) -> Iterator[Study]:
        """Every study of these days. Windows grow while answers are short: years without studies cost little."""
        days = _FIRST_SPAN
        while first <= last:
            window = Window(first, min(last, first + datetime.timedelta(days=days - 1)))
            answer = self.ask(window)
            yield from self._with_halves(window, answer)
            if self._doubtful(answer):
                days = max(1, days // 2)
            elif len(answer.studies) <= self.most // 4:
                days = min(_LONGEST_SPAN, days * 2)
            first = window.last + datetime.timedelta(days=1)

    def _with_halves(self, window: Window, answer: Answer) -> Iterator[Study]:
        yield from answer.studies  # also those without a time, which no half will match
        if not self._doubtful(answer):
            return
        halves = window.halves(self.by_minute)
        if not halves and self.by_minute:
            raise TooManyResultsError
        for half in halves:
            yield from self._with_halves(half, self.ask(half))

    def _doubtful(self, answer: Answer) -> bool:
        return answer.cut or len(answer.studies) >= self.most
