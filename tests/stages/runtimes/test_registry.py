from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from stages.runtimes import registry
from tests.errors import raises
from tests.stages.runtimes.plugins import install_plugin, numpy_runtime

HEAVY = "('torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'tensorrt_rtx', 'ncnn')"


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_built_in_runtimes_keep_to_the_interface(name: str) -> None:
    runtime = registry.get(name)
    assert runtime.name == name
    assert set(runtime.precisions) | set(runtime.not_offered) == {"fp32", "fp16", "bf16", "int8"}
    assert runtime.recipe == ("x86" if name == "onnxruntime" else "signed")
    assert runtime.distributions


def test_finding_runtimes_imports_nothing_heavy() -> None:
    code = (
        "import sys; from stages.runtimes import registry, identity\n"
        "assert 'pydantic' not in sys.modules and 'importlib.metadata' not in sys.modules\n"
        "[registry.get(name) for name in registry.BUILT_IN]\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(UsageError) as caught:
        registry.get("onnxruntme")
    assert "onnxruntime" in caught.value.hint
    assert "tensorrt_rtx" in caught.value.why


def test_precision_that_is_not_offered_says_why_and_what_is() -> None:
    with pytest.raises(UsageError) as caught:
        registry.check_target("onnxruntime-fp16")
    assert "fp16" in caught.value.why
    assert "onnxruntime-fp32, onnxruntime-int8" in caught.value.hint
    with raises(UsageError, what="does not offer bf16") as caught:
        registry.check_target("onnxruntime-bf16")
    assert "openvino-bf16" in caught.value.why
    for name in ("tensorrt-fp16", "tensorrt-bf16"):
        assert registry.check_target(name).name == "tensorrt"


def test_third_party_runtime_is_found_by_its_entry_point(plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "reference", numpy_runtime("reference"))
    assert "reference" in registry.names()
    assert registry.get("reference").ability_to_build().versions == {"reference-plugin": "1.2"}


def test_broken_third_party_runtime_is_a_usage_error(plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "broken", "import a_module_that_is_not_there")
    with raises(UsageError, what="cannot be imported") as caught:
        registry.get("broken")
    assert "a_module_that_is_not_there" in caught.value.why


def test_third_party_object_without_the_interface_is_a_usage_error(plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "partial", "class RUNTIME:\n    precisions = ('fp32',)")
    with raises(UsageError, what="interface") as caught:
        registry.get("partial")
    assert "no load" in caught.value.why
