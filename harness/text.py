"""Text that a person saved; numbers, metrics and durations in words; the known name nearest to a mistyped one."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def decoded(payload: bytes) -> str:
    """The text of a file that a person saved: UTF-8, or UTF-16 where a byte order mark says so."""
    utf16 = payload.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return payload.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def number(value: Any) -> str:
    """A number as a person writes it; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.3g}"


def counted(n: int, noun: str) -> str:
    """``1 trial``, ``3 trials``, ``3,375 updates``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


_METRIC = re.compile(r"(fid|kid|is|precision|recall)_?(inception|mnv2|vgg16)?_?(\d+k?)(_bf16)?")
_METRICS = {"fid": "FID", "kid": "KID", "is": "Inception Score", "precision": "precision", "recall": "recall"}
_FEATURES = {"inception": "Inception", "mnv2": "MobileNetV2", "vgg16": "VGG16"}


def metric_label(name: str) -> str:
    """A metric's full name in words: ``fid_mnv2_250`` is FID of 250 images by MobileNetV2's features."""
    match = _METRIC.fullmatch(name)
    if match is None:
        return name
    metric, features, count, quick = match.groups()
    images = f"{int(count.removesuffix('k')) * (1000 if count.endswith('k') else 1):,}"
    by = f" by {_FEATURES[features]}'s features" if features else ""
    return f"{_METRICS[metric]} of {images} images{by}{' in bf16' if quick else ''}"


def heading(name: str) -> str:
    """A metric's name at the head of a column: ``fid_mnv2_250`` is FID, MobileNetV2; how many images, the text says."""
    words = re.sub(r" of [\d,]+ images", "", metric_label(name)).replace(" in bf16", ", bf16")
    return re.sub(r" by (\w+)'s features", r", \1", words)


def objective_label(name: str, metric: str) -> str:
    """What an objective measures, with its unit and which way is better."""
    prc = metric_label(metric).partition(" of ")[2]
    return {
        "score": f"{metric_label(metric)} (lower is better)",
        "seconds": "training time (s, lower is better)",
        "precision": f"precision of {prc} (higher is better)",
        "recall": f"recall of {prc} (higher is better)",
    }[name]


def scored(value: float) -> str:
    """A score with digits to tell trials apart: FID is in the tens, KID in the hundredths."""
    return f"{value:.2f}" if value >= 10 else f"{value:.4g}"


def against_bar(score: float, bar: float | None) -> str:
    """A score with the bar that it missed, ``71.33; the bar was 71.32``: with digits to tell them apart."""
    if bar is None or not bar <= score:
        return scored(score)
    shown = next((shown for shown in (scored, "{:.6g}".format) if shown(score) != shown(bar)), repr)
    return f"{shown(score)}; the bar was {shown(bar)}"


def duration(seconds: float) -> str:
    """``0.25 s``, ``42 s``, from two minutes on ``3.5 min``, from two hours ``2.1 h``, from two days ``2.1 days``."""
    if seconds >= 172_800:
        return f"{seconds / 86_400:.1f} days"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: the nearest one as a question; empty where none is like it."""
    return "".join(f"; did you mean {guess}?" for guess in get_close_matches(name[:100], known, n=1))
