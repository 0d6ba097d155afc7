"""Foreground work goes first, and background work goes on."""

from __future__ import annotations

import threading

from engine.retrieval.foreground import Foreground


def test_background_waits_until_the_last_foreground_work_has_ended():
    foreground, order = Foreground(), []

    def background() -> None:
        foreground.step_aside(at_most_s=60)
        order.append("background")

    thread = threading.Thread(target=background)
    with foreground.work():
        with foreground.work():
            thread.start()
            order.append("first")
        order.append("second")
    thread.join()
    assert order == ["first", "second", "background"]


def test_background_goes_on_at_once_when_nobody_waits_and_at_last_when_somebody_always_does():
    foreground = Foreground()
    foreground.step_aside(at_most_s=3600)
    with foreground.work():
        foreground.step_aside(at_most_s=0.01)
