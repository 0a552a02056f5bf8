"""A sweep with a time limit: it starts no new trial once those begun need the time left, and stops at the end."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import optuna

from harness.scoring.protocol import INCEPTION
from harness.spec.resolved import ResolvedStudy
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs
from harness.store.trials import begun_count
from harness.sweep import messages
from harness.sweep.messages import Watcher
from harness.text import counted, duration

# Time reserved for closing the study and writing its report (s), at most this share of the whole.
_REPORT_S, _REPORT_SHARE = 30.0, 0.1
# Assumed until a final score was timed: images scored in a second, by Inception on a CPU and otherwise; the rest (s).
_SLOW_RATE, _RATE, _FINAL_S = 4.0, 100.0, 15.0


@dataclass(slots=True)
class TimeBudget:
    """Watches a sweep's events and clock, from ``close_in_time`` on. ``is_over``: the time was used up."""

    spec: ResolvedStudy
    hours: float
    workers: int
    started: float = field(default_factory=time.monotonic)
    closed: bool = False
    is_over: bool = False
    _kimg: dict[int, float] = field(default_factory=dict)  # trained, by trial
    _due: bool = False
    _running: set[int] = field(default_factory=set)
    _before: float = 0.0  # trained by earlier starts (kimg)
    _first: float | None = None  # when the first trial of this start began
    _scoring: dict[int, float] = field(default_factory=dict)
    _final_s: float | None = None
    _final_guess_s: float = 0.0
    _completed: int = 0

    @property
    def deadline(self) -> float:
        seconds = self.hours * 3600
        return self.started + seconds - min(_REPORT_S, _REPORT_SHARE * seconds)

    def close_in_time(self, study: optuna.Study, watcher: Watcher, device: str) -> Watcher:
        """The watcher, which now also closes the study when another trial would be late, and stops at the deadline."""
        final = self.spec.scoring.final
        rate = _SLOW_RATE if device == "cpu" and final.extractor == INCEPTION else _RATE
        self._final_guess_s = _FINAL_S + (self.spec.scoring.sampling_seeds or 1) * final.samples / rate

        def on_event(event: messages.Event) -> None:
            self._note(event)
            watcher.on_event(event)

        def stop_level() -> int:
            now, level = time.monotonic(), watcher.stop_level()
            if now >= self.deadline:
                self.is_over = True
                return level if self._first_score_is_near() else max(level, 1)
            # Checked when a trial has ended or paused: would there be time if each worker began another one?
            due, self._due = self._due, False
            if due and not self.closed and now + self._left_s(now, len(self._kimg) + self.workers) > self.deadline:
                self.closed = True
                begun = begun_count(study)
                write_study_attrs(study, StudyAttrs(target=begun))
                watcher.say(
                    f"{duration(self.deadline - now)} of {duration(self.hours * 3600)} left: no new trial begins; "
                    f"the best of the {counted(begun, 'trial')} so far are trained to the end"
                )
            return level

        return dataclasses.replace(watcher, on_event=on_event, stop_level=stop_level)

    def _note(self, event: messages.Event) -> None:
        now = time.monotonic()
        match event:
            case messages.Opened(record=record):
                for trial in record.trials:
                    if trial.shown_state in ("COMPLETE", "PRUNED", "PAUSED"):
                        done = trial.state == "COMPLETE"
                        self._completed += done
                        reached = self.spec.budget.kimg if done else max(trial.intermediate, default=0) / 1000
                        self._kimg[trial.number] = reached
                self._before = sum(self._kimg.values())
            case messages.Started(number=number, kimg=kimg, retry_of=retry_of):
                self._first = self._first or now
                self._running.add(number)
                self._kimg[number] = max(kimg, self._kimg.pop(retry_of, 0.0) if retry_of is not None else 0.0)
            case messages.Progressed(number=number, kimg=kimg):
                self._kimg[number] = kimg
            case messages.Scoring(number=number):
                self._scoring[number] = now
            case messages.Ended(number=number, state=state):
                self._running.discard(number)
                self._due = True
                if state == "COMPLETE":
                    self._completed += 1
                    self._final_s = max(self._final_s or 0.0, now - self._scoring.get(number, now))

    def _first_score_is_near(self) -> bool:
        """Whether the only result would be lost: no trial has a final score yet, and one is getting it."""
        scoring = self._running & self._scoring.keys()
        return not self._completed and any(self._kimg[number] >= self.spec.budget.kimg for number in scoring)

    def _left_s(self, now: float, begun: int) -> float:
        """Seconds until all begun trials are done, if no other one starts; 0 while nothing is trained."""
        trained = sum(self._kimg.values())
        if self._first is None or trained <= self._before:
            return 0.0
        s_per_kimg = (now - self._first) * self.workers / (trained - self._before)  # of one worker
        if self.spec.promotions:
            finals = max(1, self.spec.funnel(begun)[-1] - self._completed)
            at_once = min(self.workers, finals)
            # At least one trial that overtakes earlier promotions trains from its first rung to the end.
            alone_kimg = self.spec.budget.kimg - self.spec.budget.rungs[0]
            left_kimg = max(self.spec.expected_kimg(begun) - trained, alone_kimg) / at_once
            rounds = -(-finals // at_once)
        else:
            left_kimg = max((self.spec.budget.kimg - self._kimg[number] for number in self._running), default=0.0)
            rounds = 1
        final_s = self._final_guess_s if self._final_s is None else self._final_s
        return max(0.0, left_kimg) * s_per_kimg + rounds * final_s
