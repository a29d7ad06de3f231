"""The profile's settings of a device."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pydantic import field_validator

from stages.fields import Settings, setting

DEVICE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
URL = (
    r"(local|adb://[A-Za-z0-9][A-Za-z0-9._:-]*/?|"
    r"ssh://([A-Za-z0-9_][A-Za-z0-9._-]*@)?([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?)"
)
"""`ssh://HOST`, where HOST may be an alias of the user's ssh configuration. No name begins with a dash,
because OpenSSH would read it as an option."""


IMAGES_BYTES = 256 << 20
"""Bytes of test images that a device is sent at most, if `accuracy_images` is null."""


class DeviceSettings(Settings):
    """A device that bundles are measured on and shipped to."""

    url: str = setting(
        ..., "ssh://USER@HOST:PORT, adb://SERIAL, or local for this machine", min_length=1, keyed=False
    )
    python: str = setting(
        "python3",
        "the device's Python, 3.10 or later, with numpy and the runtimes",
        min_length=1,
        keyed=False,
    )
    folder: str = setting(
        "kdpipe", "where kdpipe writes on the device; relative to the user's home", min_length=1, keyed=False
    )
    targets: list[str] | None = setting(None, "target names to measure there; null: all of `targets`")
    accuracy_images: int | None = setting(
        None,
        "test images, evenly spread, run there to measure top-1; null: all, up to 256 MiB; 0: none",
        unit="images",
        ge=0,
        keyed=False,
    )
    identity: str | None = setting(
        None, "private key file for ssh; null: the one in ssh's own configuration", min_length=1, keyed=False
    )
    config: str | None = setting(
        None, "ssh configuration file; null: the user's own", min_length=1, keyed=False
    )
    options: dict[str, str] = setting(
        dict, "more of ssh's options by name, e.g. {ProxyJump: gateway}", keyed=False
    )
    connect_timeout_s: float = setting(
        10.0, "how long to wait for the device to answer", unit="s", ge=1.0, le=600.0, keyed=False
    )
    keep: int = setting(3, "releases that `kdpipe ship` leaves on the device", ge=1, le=1000, keyed=False)

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if not re.fullmatch(URL, url):
            raise ValueError(f"found {url!r}, expected ssh://USER@HOST:PORT, adb://SERIAL or local")
        port = re.search(r":([0-9]+)/?$", url)
        if port and "]" not in port[1] and not 1 <= int(port[1]) <= 65535:
            raise ValueError(f"no port {port[1]}: ports are 1 to 65535")
        return url

    @field_validator("folder", "python")
    @classmethod
    def _plain_path(cls, path: str) -> str:
        if "\0" in path or "\n" in path or path.startswith("-"):
            raise ValueError("a path must not contain line breaks or begin with a dash")
        if ".." in PurePosixPath(path).parts:
            raise ValueError("a path must not contain ..")
        if path.startswith("~"):
            raise ValueError("write it without ~: a relative path begins in the user's home")
        return path

    @field_validator("options")
    @classmethod
    def _options_of_ssh(cls, options: dict[str, str]) -> dict[str, str]:
        for name, value in options.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name) or "\n" in value or "\0" in value:
                raise ValueError(f"{name!r} is not an option of ssh's configuration")
            if name.lower() in SET_BY_KDPIPE:
                raise ValueError(f"{name} is set by kdpipe itself")
        return options


SET_BY_KDPIPE = (
    "batchmode",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "port",
    "user",
    "identityfile",
)
"""Options that follow from the other settings, or that the shared connection needs."""
