"""What the machine grants this process: affinity and control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import machine


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # The group is nested, and a group above it grants less.
        (
            {
                "proc/self/cgroup": "0::/pod/job\n",
                "sys/fs/cgroup/pod/job/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        # The container sees its own group as the root, while /proc names the path on the host.
        ({"proc/self/cgroup": "0::/docker/5f\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        # Version 1, the controller shared with another one.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/5f\n1:memory:/docker/5f\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({"sys/fs/cgroup/cpu.max": "100000 0\n"}, None),
    ],
)
def test_the_quota_of_a_control_group(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert machine.cpu_quota(write(tmp_path, files)) == quota


@given(quota_us=st.integers(1_000, 10_000_000))
def test_threads_fit_the_quota_and_the_affinity(
    quota_us: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = write(tmp_path_factory.mktemp("root"), {"sys/fs/cgroup/cpu.max": f"{quota_us} 100000\n"})
    allowed = len(machine.allowed_cores())
    cores = machine.usable_cores(root)
    assert 1 <= cores <= allowed
    assert cores == 1 or cores <= quota_us / 100_000
    assert machine.usable_cpu(root) == min(allowed, quota_us / 100_000)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": "1073741824\n"}, 2**30),
        (
            {
                "proc/self/cgroup": "9:memory:/job\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{2**29}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2**29,
        ),
    ],
)
def test_the_memory_that_is_granted(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    assert machine.memory_limit(write(tmp_path, files)) == limit
