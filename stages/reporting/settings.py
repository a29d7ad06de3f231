"""Settings of the bundle and the report. Light: imports only pydantic."""

from __future__ import annotations

from stages.fields import Settings, setting


class PackageSettings(Settings):
    """The content of the bundle."""

    targets: list[str] | None = setting(None, "target names to pack; null: every built one")
    level: int = setting(10, "zstd compression level of the archive", ge=1, le=22)


class ReportSettings(Settings):
    """The HTML page."""

    title: str | None = setting(None, "headline; null: the profile's name")
