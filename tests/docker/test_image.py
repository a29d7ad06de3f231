"""Builds the Dockerfile for real with buildah, over a base made by debootstrap, and runs it.

Needs root, buildah, debootstrap and a Debian mirror; takes many minutes and some 30 GB of disk.
Without a Docker daemon this is the way to build an image inside a container.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("buildah", "debootstrap")
IMAGE = "localhost/kdpipe-test:cpu"
BASE = "localhost/kdpipe-test-base"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and buildah's chroot isolation need root"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in TOOLS),
        reason="needs buildah and debootstrap (apt-get install buildah debootstrap)",
    ),
]


def buildah(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    command = ["buildah", "--storage-driver=vfs", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished


def debian_mirror() -> list[str]:
    """`$KDPIPE_TEST_DEBIAN_MIRROR`, else the first one apt is set up with, else debootstrap's own."""
    named = os.environ.get("KDPIPE_TEST_DEBIAN_MIRROR")
    if named:
        return [named]
    known = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(known, capture_output=True, text=True, check=False).stdout.split()
    return [uri for uri in listed if "security" not in uri][:1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A minimal Debian with Python, imported as an image."""
    folder = tmp_path_factory.mktemp("debian")
    subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            "--include=python3,python3-venv,ca-certificates",
            "bookworm",
            str(folder / "root"),
            *debian_mirror(),
        ],
        check=True,
        capture_output=True,
    )
    container = buildah("from", "scratch").stdout.strip()
    buildah("add", container, str(folder / "root"), "/")
    buildah("commit", container, BASE)
    buildah("rm", container)
    shutil.rmtree(folder)
    yield BASE
    buildah("rmi", "--force", BASE)


@pytest.fixture(scope="module")
def image(base: str) -> Iterator[str]:
    """The CPU target. The machine's certificates and pip settings are lent to the build, not kept."""
    lent = [path for path in ("/etc/ssl/certs", "/etc/pip.conf") if Path(path).exists()]
    volumes = [f"--volume={path}:{path}:ro" for path in lent]
    buildah(
        "build",
        "--isolation=chroot",
        "--layers=false",
        "--target=cpu",
        f"--build-arg=BASE_IMAGE={base}",
        f"--build-arg=TORCH_INDEX={os.environ.get('KDPIPE_TEST_TORCH_INDEX', '')}",
        "--build-arg=EXTRAS=",
        *volumes,
        f"--tag={IMAGE}",
        ".",
    )
    yield IMAGE
    buildah("rmi", "--force", IMAGE)


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[str]:
    name = buildah("from", image).stdout.strip()
    yield name
    buildah("rm", name)


def test_the_entry_point_is_kdpipe_and_the_user_is_not_root(image: str) -> None:
    config = json.loads(buildah("inspect", "--type=image", image).stdout)["OCIv1"]["config"]
    assert config["Entrypoint"] == ["kdpipe"]
    assert config["User"] == "kdpipe"
    assert config["WorkingDir"] == "/project"


def test_the_product_runs_in_the_image(container: str) -> None:
    def run(*command: str) -> str:
        return buildah("run", "--isolation=chroot", container, "--", *command).stdout

    assert "kdpipe" in run("kdpipe", "--version")
    assert run("id", "-un").strip() == "kdpipe"
    planned = json.loads(run("kdpipe", "plan", "resnet_to_mobilenet", "--json", "--store", "/tmp/store"))
    assert [stage["status"] for stage in planned["stages"]] == ["stale"] * 9
    run(
        "kdpipe", "train", "resnet_to_mobilenet", "--store", "/tmp/store", "--set", "train.epochs=1",
        "--set", "train.fraction=0.2",
    )  # fmt: skip
