"""The machine's state, read from trees like those of real machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.measuring import contention as watch
from stages.measuring import pinning


def write(root: Path, path: str, text: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n", encoding="utf-8")


def figures(**given: object) -> dict[str, object]:
    quiet: dict[str, object] = {
        "wall_over_cpu": 1.02,
        "involuntary_switches_per_s": 2.0,
        "others_share": 0.01,
        "steal_share": 0.0,
        "clock_mhz": [2995, 3000],
        "throttle_events": 0,
    }
    return {**quiet, **given}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"wall_over_cpu": 1.4}, "CPU time"),
        ({"involuntary_switches_per_s": 150.0, "others_share": 0.05}, "switches"),
        ({"involuntary_switches_per_s": 150.0, "others_share": None}, "switches"),
        ({"others_share": 0.4}, "other processes"),
        ({"steal_share": 0.05}, "steal"),
    ],
)
def test_each_sign_of_contention_is_named(changed: dict[str, object], word: str) -> None:
    (sign,) = watch.contention_signs(figures(**changed), 1)
    assert word in sign
    assert watch.contention_signs(figures(), 1) == []


def test_a_runtimes_own_threads_that_change_on_one_core_are_no_contention() -> None:
    """OpenVINO hands every image to a thread of its own: hundreds of involuntary switches a second."""
    assert watch.contention_signs(figures(involuntary_switches_per_s=970.0, others_share=0.003), 1) == []


def test_spinning_threads_are_no_contention() -> None:
    assert watch.contention_signs(figures(wall_over_cpu=1.4), 2) == []


def test_each_sign_of_throttling_is_named() -> None:
    assert watch.throttle_signs(figures()) == []
    assert "3000 to 2100 MHz" in watch.throttle_signs(figures(clock_mhz=[2100, 3000]))[0]
    assert "4 thermal throttle" in watch.throttle_signs(figures(throttle_events=4))[0]
    assert watch.throttle_signs(figures(clock_mhz=None, throttle_events=None)) == []


def test_clock_temperature_and_throttle_counts_of_the_cores(tmp_path: Path) -> None:
    for core, khz in enumerate((3_000_000, 1_200_000, 2_500_000)):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz)
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", core)
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", 41_000)
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", 73_500)
    assert watch.core_clock_mhz((0, 2), tmp_path) == 2500
    assert watch.throttle_events((1, 2), tmp_path) == 3
    assert watch.temperature_c(tmp_path) == 73.5


def test_a_machine_that_tells_nothing_is_not_accused(tmp_path: Path) -> None:
    observer = watch.Watch((0,), 1, root=tmp_path)
    observer.begin()
    health = observer.end(1.0)
    assert health["clock_mhz"] is None
    assert health["others_share"] is None
    assert health["throttled_by"] == []


def test_a_clock_that_falls_while_watched_is_throttled(tmp_path: Path) -> None:
    clock = "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    write(tmp_path, clock, 3_000_000)
    observer = watch.Watch((0,), 1, root=tmp_path)
    observer.begin()
    write(tmp_path, clock, 1_800_000)
    observer.look()
    write(tmp_path, clock, 3_000_000)
    health = observer.end(1.0)
    assert health["clock_mhz"] == [1800, 3000]
    assert "throttled" in health["flags"]


def test_ticks_of_the_watched_cores(tmp_path: Path) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    write(
        tmp_path,
        "proc/stat",
        f"cpu 0 0 0 0 0 0 0 0 0 0\ncpu0 {hertz} 0 {hertz} 9 9 0 0 {hertz} 0 0\ncpu1 7 7 7 7 7 7 7 7 0 0",
    )
    assert watch.core_ticks((0,), tmp_path) == watch.Ticks(2.0, 1.0)
    assert watch.core_ticks((5,), tmp_path) is None


def test_no_twin_is_chosen_while_there_are_others(tmp_path: Path) -> None:
    for core in range(4):
        twins = "0,2" if core in (0, 2) else "1,3"
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", twins)
    assert pinning.choose_cores(1, {0, 1, 2, 3}, tmp_path) == {3}
    assert pinning.choose_cores(2, {0, 1, 2, 3}, tmp_path) == {2, 3}
    assert pinning.choose_cores(3, {0, 1, 2, 3}, tmp_path) == {1, 2, 3}
    assert pinning.choose_cores(9, {0, 1, 2, 3}, tmp_path) == {0, 1, 2, 3}
    write(tmp_path, "sys/devices/system/cpu/cpu8/topology/thread_siblings_list", "8-9")
    assert pinning.siblings(8, tmp_path) == {8, 9}


def _stat(root: Path, busy_s: float, idle_s: float = 0.0) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    row = [round(busy_s * hertz), 0, 0, round(idle_s * hertz), 0, 0, 0, 0, 0, 0]
    write(root, "proc/stat", "cpu0 " + " ".join(map(str, row)))


def test_what_other_measured_processes_used_is_not_held_against_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds in which the core was busy for eight, six of them for the two that were measured."""
    for used_s, share in ((6.0, 0.2), (8.0, 0.0)):
        clock = iter([100.0, 110.0])
        monkeypatch.setattr("time.perf_counter", lambda clock=clock: next(clock))
        _stat(tmp_path, 50.0)
        observer = watch.Watch((0,), 1, root=tmp_path)
        observer.begin()
        _stat(tmp_path, 58.0)
        health = observer.end(1.0, watch.Usage(cpu_s=used_s, switches=30))
        assert health["others_share"] == pytest.approx(share)
        assert health["involuntary_switches_per_s"] == 3.0
        assert ("contended" in health["flags"]) == (share > 0.1)


def test_of_several_stretches_the_worst_counts_and_each_sign_is_told_once() -> None:
    def health(**given: object) -> dict[str, object]:
        quiet: dict[str, object] = {
            **figures(),
            "load_average": [0.1, 0.2],
            "temperature_c": [None, None],
            "contended_by": [],
            "throttled_by": [],
            "flags": [],
        }
        return {**quiet, **given}

    noisy = {"contended_by": ["others"], "flags": ["contended"]}
    merged = watch.merge_health(
        [
            health(wall_over_cpu=1.5, others_share=None, **noisy),
            health(clock_mhz=[2000, 2900], load_average=[0.5, 3.0], others_share=0.3, **noisy),
        ]
    )
    assert merged["wall_over_cpu"] == 1.5
    assert merged["others_share"] == 0.3
    assert merged["clock_mhz"] == [2000, 3000]
    assert merged["load_average"] == [0.1, 3.0]
    assert merged["contended_by"] == ["others"]
    assert merged["flags"] == ["contended"]
    assert watch.merge_health([health(wall_over_cpu=None)])["wall_over_cpu"] is None
