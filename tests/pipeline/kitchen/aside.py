"""Writes down a text; nothing reads it."""

from __future__ import annotations

from pipeline.stage import Context, Metrics


def run(context: Context) -> Metrics:
    (context.output / "aside.txt").write_text(context.settings.aside.text, encoding="utf-8")
    return {}
