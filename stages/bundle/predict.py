#!/usr/bin/env python3
"""Run the models of this bundle. Only numpy and the target's runtime are needed.

    python predict.py --selftest            check every file, and the golden outputs, on this device
    python predict.py image.png             label an image (image files need Pillow; .npy does not)
    python predict.py image.png --target onnxruntime-int8 --top 3 --json
    python predict.py --list                list the targets, and whether they can run on this device

Exit codes: 0 done; 1 the bundle is damaged, a check failed or a model failed; 2 wrong usage, or an image
cannot be read; 4 the target cannot run on this device, or none of the bundle's targets can.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError as missing:
    if __name__ != "__main__":
        raise
    print(f"error: this program needs numpy: {missing} (pip install numpy)", file=sys.stderr)
    sys.exit(4)

HERE = Path(__file__).resolve().parent
IMPORTS = {
    "ncnn": "ncnn",
    "onnxruntime": "onnxruntime",
    "onnxruntime_cuda": "onnxruntime",
    "onnxruntime_tensorrt": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt_rtx",
}
"""The Python module of each runtime."""

REQUIRED = {"default_target": str, "input": str, "preprocessing": dict, "targets": dict}
"""The manifest's keys that are needed to run a model, each with its type."""

PREPROCESSING = ("image_size", "channels", "resize", "scale", "mean", "std")
"""The keys of the manifest's `preprocessing`."""


class UnavailableError(Exception):
    """The target cannot run on this device; the text is the reason."""


class ModelError(Exception):
    """The runtime is installed, but cannot load or run the model; the text is the reason."""


class DamagedError(Exception):
    """A file of the bundle is missing or cannot be used; the text names the file and the reason."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("images", nargs="*", help="image files, or .npy of uint8 (H,W,C) or (N,H,W,C)")
    parser.add_argument("--target", help="the target to run; default: the bundle's default target")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--top", type=int, default=1, help="number of most probable classes to print")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--selftest", action="store_true", help="check files and golden outputs")
    parser.add_argument(
        "--list", action="store_true", help="list the targets, and whether they can run on this device"
    )
    options = parser.parse_args(arguments)
    try:
        manifest = read_manifest(need_files=options.selftest)
    except DamagedError as error:
        return _fail(str(error), 1)
    if options.target and options.target not in manifest["targets"]:
        targets = ", ".join(manifest["targets"])
        return _fail(f"this bundle has no target {options.target!r}; it has: {targets}", 2)
    if options.selftest:
        return selftest(manifest, options)
    if options.list:
        return list_targets(manifest, options)
    if not options.images:
        parser.print_help()
        return 2
    return predict(manifest, options)


def read_manifest(need_files: bool) -> dict[str, Any]:
    """Return the content of manifest.json.

    Args:
        need_files: Whether the list of files is needed.

    Raises:
        DamagedError: The file is missing, cannot be read or has no valid value for a key that is needed.
    """
    try:
        manifest: dict[str, Any] = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedError(f"manifest.json cannot be read: {_reason(error)}") from None
    except ValueError as error:
        raise DamagedError(f"manifest.json is damaged: {_reason(error)}") from None
    if not isinstance(manifest, dict):
        raise DamagedError("manifest.json is damaged: it is not a JSON object")
    for key, kind in {**REQUIRED, **({"files": dict} if need_files else {})}.items():
        if not isinstance(manifest.get(key), kind):
            raise DamagedError(f"manifest.json is damaged: {key!r} is missing or has another type")
    for key in PREPROCESSING:
        if key not in manifest["preprocessing"]:
            raise DamagedError(f"manifest.json is damaged: its preprocessing has no {key!r}")
    for name, target in manifest["targets"].items():
        if not isinstance(target, dict) or not isinstance(target.get("runtime"), str):
            raise DamagedError(f"manifest.json is damaged: the target {name!r} has no runtime")
    return manifest


def predict(manifest: dict[str, Any], options: argparse.Namespace) -> int:
    """Print the most probable classes of each image, and return the exit code."""
    name = options.target or manifest["default_target"]
    if name not in manifest["targets"]:
        return _fail(
            f"manifest.json is damaged: its default target {name!r} is not in the list of targets", 1
        )
    images = []
    for file in options.images:
        try:
            images.append(read_images(Path(file), manifest["preprocessing"]))
        except Exception as error:  # image readers raise errors of many classes
            reason = _reason(error)
            return _fail(reason if file in reason else f"{file} cannot be read: {reason}", 2)
    pixels = np.concatenate(images)
    if not len(pixels):
        return _fail(f"there is no image in {', '.join(options.images)}", 2)
    try:
        logits = run(manifest, name, pixels, options.threads)
        labels = read_labels(logits.shape[1])
    except UnavailableError as error:
        return _fail(f"{name} cannot run here: {error}", 4)
    except ModelError as error:
        return _fail(f"{name} failed: {error}; python predict.py --selftest checks the bundle", 1)
    except DamagedError as error:
        return _fail(str(error), 1)
    probabilities = softmax(logits)
    results = []
    for row in probabilities:
        order = np.argsort(-row)[: max(1, options.top)]
        results.append(
            [{"label": labels[index], "probability": round(float(row[index]), 6)} for index in order]
        )
    if options.json:
        print(json.dumps({"schema_version": 1, "target": name, "predictions": results}))
    else:
        for index, best in enumerate(results):
            classes = ", ".join(f"{entry['label']} {entry['probability']:.3f}" for entry in best)
            file = options.images[index] if len(results) == len(options.images) else f"image {index}"
            print(f"{file}: {classes}")
    return 0


def read_labels(classes: int) -> list[str]:
    """Return the names of the classes.

    Raises:
        DamagedError: labels.txt cannot be read, or has fewer lines than the model has classes.
    """
    try:
        labels = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DamagedError(f"labels.txt cannot be read: {_reason(error)}") from None
    if len(labels) < classes:
        raise DamagedError(
            f"labels.txt is damaged: it has {len(labels)} lines, the model has {classes} classes"
        )
    return labels


def selftest(manifest: dict[str, Any], options: argparse.Namespace) -> int:
    """Check every file by its SHA-256, and every target that can run on this device by its golden outputs.

    All faults are reported, each as soon as it is detected, because a damaged model may crash its runtime.
    """
    damaged = {}
    for path, entry in manifest["files"].items():
        fault = _file_fault(HERE / path, entry)
        if fault:
            damaged[path] = fault
            _report_failure(f"{path} {fault}")
    print(f"files: {len(manifest['files'])} checked, {len(damaged)} wrong", flush=True)
    inputs, failures, tested = None, len(damaged), 0
    if "golden/inputs.npy" not in damaged:
        try:
            inputs = read_golden("inputs")
        except DamagedError as error:
            failures += 1
            _report_failure(str(error))
    for name, target in manifest["targets"].items():
        if options.target and name != options.target:
            continue
        own = (f"models/{name}/", f"golden/{name}.npy")
        if any(path.startswith(own) for path in damaged):
            print(f"{name}: not tested, its files are damaged", flush=True)
            continue
        if not (HERE / "golden" / f"{name}.npy").is_file():
            print(f"{name}: not tested, it was not run where the bundle was made", flush=True)
            continue
        if inputs is None:
            print(f"{name}: not tested, the golden inputs are damaged", flush=True)
            continue
        try:
            good, comparison = compare_with_golden(manifest, name, target, inputs, options.threads)
        except UnavailableError as error:
            print(f"{name}: not tested, {error}", flush=True)
            continue
        except (ModelError, DamagedError) as error:
            good, comparison = False, str(error)
            fault = comparison
        else:
            fault = "its outputs differ from the golden outputs"
        tested += 1
        print(f"{name}: {'passed' if good else 'FAILED'}, {comparison}", flush=True)
        if not good:
            failures += 1
            _report_failure(f"{name}: {fault}")
    if failures:
        return _fail(
            f"self-test failed, {failures} faults" if failures > 1 else "self-test failed, 1 fault", 1
        )
    if not tested:
        return _fail("no target of this bundle can run here; install the packages in requirements.txt", 4)
    print("self-test passed")
    return 0


def compare_with_golden(
    manifest: dict[str, Any], name: str, target: dict[str, Any], inputs: np.ndarray, threads: int
) -> tuple[bool, str]:
    """Return whether a target reproduces its golden outputs, and the comparison in words.

    Raises:
        UnavailableError: The target cannot run on this device.
        ModelError: The runtime cannot load or run the model.
        DamagedError: Golden outputs or limits are missing.
    """
    expected = read_golden(name)
    missing = [
        key for key in ("tolerance", "least_agreement") if not isinstance(target.get(key), (int, float))
    ]
    if missing:
        raise DamagedError(f"manifest.json is damaged: the target has no {missing[0]!r}")
    logits = run(manifest, name, inputs, threads)
    if logits.shape != expected.shape:
        raise ModelError(f"its outputs have the shape {logits.shape}, the golden ones {expected.shape}")
    largest = float(np.abs(logits - expected).max()) / max(float(expected.std()), 1e-12)
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    good = largest <= target["tolerance"] and agreement >= target["least_agreement"]
    return good, (
        f"largest logit difference {largest:.2g} standard deviations of the golden logits "
        f"(at most {target['tolerance']:g}), the same class for {agreement:.0%} of {len(inputs)} images "
        f"(at least {target['least_agreement']:.0%})"
    )


def read_golden(name: str) -> np.ndarray:
    """Return the array in golden/NAME.npy.

    Raises:
        DamagedError: The file cannot be read, or is empty.
    """
    try:
        array: np.ndarray = np.load(HERE / "golden" / f"{name}.npy", allow_pickle=False)
    except Exception as error:  # numpy raises errors of many classes
        raise DamagedError(f"golden/{name}.npy cannot be read: {_reason(error)}") from None
    if not isinstance(array, np.ndarray) or not array.size:
        raise DamagedError(f"golden/{name}.npy contains no array of numbers")
    return array


def _file_fault(file: Path, entry: Any) -> str:
    """Return the fault of a file in the manifest; "" if there is none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        return "has no SHA-256 in the manifest"
    if not file.is_file():
        return "is missing"
    try:
        content = file.read_bytes()
    except OSError as error:
        return f"cannot be read: {_reason(error)}"
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        return "is damaged: its SHA-256 differs from the manifest's"
    return ""


def list_targets(manifest: dict[str, Any], options: argparse.Namespace) -> int:
    """Print every target and whether its runtime can be imported, and return the exit code."""
    rows = []
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for name, target in manifest["targets"].items():
        try:
            __import__(IMPORTS.get(target["runtime"], target["runtime"]))
            runs = "yes"
        except Exception as error:  # a broken runtime must not end the list
            runs = f"no: {error}"
        rows.append(
            {"target": name, "default": name == manifest["default_target"], "runs_here": runs, **target}
        )
    if options.json:
        print(json.dumps({"schema_version": 1, "targets": rows}))
        return 0
    for row in rows:
        mark = "*" if row["default"] else " "
        top1 = f"{row['top1']:.2f} %" if row.get("top1") is not None else "not measured"
        print(f"{mark} {row['target']:22} top-1 {top1:>12}   runs here: {row['runs_here']}")
    return 0


def read_images(file: Path, preprocessing: dict[str, Any]) -> np.ndarray:
    """Return the images of an image file or an .npy file in the size of the model: uint8 (N, H, W, C).

    Image files are preprocessed exactly like the training images: turned upright by EXIF, transparency on
    white, 16-bit grey scaled to 8 bits, the shorter side resized, the centre cropped.

    Args:
        file: An image file, or an .npy file of uint8 (H, W, C) or (N, H, W, C) in the size of the model.
        preprocessing: Of the manifest.

    Raises:
        ValueError: The images have another size or type, or Pillow is missing.
    """
    size, channels = preprocessing["image_size"], preprocessing["channels"]
    if file.suffix == ".npy":
        images: np.ndarray = np.load(file, allow_pickle=False)
        images = images[None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, channels):
            raise ValueError(
                f"{file}: expected uint8 (N, {size}, {size}, {channels}), found {images.dtype} {images.shape}"
            )
        return images
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError(f"{file}: image files need Pillow (pip install pillow); .npy files do not") from None
    with Image.open(file) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        sixteen_bits = image.mode.startswith("I;16") or (
            image.mode == "I" and opened.format in ("PNG", "PPM")
        )
    if sixteen_bits:
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"{file}: 32-bit pixels have no fixed scale; convert it to 8 or 16 bits")
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    shorter, longer = min(width, height), max(width, height)
    length = (longer * size + shorter // 2) // shorter
    scaled = (size, length) if width <= height else (length, size)
    if scaled != image.size:
        image = image.resize(scaled, getattr(Image.Resampling, preprocessing["resize"].upper()))
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8).reshape(1, size, size, channels)


def run(manifest: dict[str, Any], name: str, images: np.ndarray, threads: int) -> np.ndarray:
    """Run a target, and return its logits.

    Args:
        manifest: Of the bundle.
        name: The target.
        images: uint8 (N, H, W, C).
        threads: CPU threads.

    Returns:
        float32 (N, classes).

    Raises:
        UnavailableError: The target cannot run on this device.
        ModelError: The runtime cannot load or run the model.
    """
    target = manifest["targets"][name]
    folder = HERE / "models" / name
    runner = RUNNERS.get(target["runtime"])
    if runner is None:
        raise UnavailableError(f"this program does not support the runtime {target['runtime']!r}")
    # OpenVINO sends usage statistics when it is imported, unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        module = __import__(IMPORTS[target["runtime"]])
    except ImportError as error:
        raise UnavailableError(f"{target['runtime']} is not installed ({error})") from None
    except Exception as error:  # a library is missing or of another version
        raise UnavailableError(f"{target['runtime']} cannot be imported ({_reason(error)})") from None
    try:
        return _run(manifest, target, runner(module, folder, threads), images)
    except (UnavailableError, ModelError):
        raise
    except Exception as error:  # every runtime raises errors of its own classes
        raise ModelError(f"{target['runtime']} refuses the model: {_reason(error)}") from None


def _run(manifest: dict[str, Any], target: dict[str, Any], call: Any, images: np.ndarray) -> np.ndarray:
    feed = images
    if manifest["input"] == "float32_nchw" or target["runtime"] == "ncnn":
        feed = normalise(images, manifest["preprocessing"])
    step = min(len(images), target.get("batch_max") or len(images))
    parts = [np.ascontiguousarray(feed[start : start + step]) for start in range(0, len(feed), step)]
    least = target.get("batch_min", 1)
    # An engine accepts no batch below its minimum: images are repeated, and their logits left out.
    logits = [call(part[np.arange(max(len(part), least)) % len(part)])[: len(part)] for part in parts]
    return np.concatenate(logits).astype(np.float32)


def normalise(images: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    """Return uint8 images (N, H, W, C) as normalised float32 (N, C, H, W)."""
    mean = np.asarray(preprocessing["mean"], np.float32)
    std = np.asarray(preprocessing["std"], np.float32)
    scaled = images.astype(np.float32) * np.float32(preprocessing["scale"])
    return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, classes)."""
    exponentials: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def run_onnxruntime(module: Any, folder: Path, threads: int) -> Any:
    """Load an ONNX file, and return a function from a batch of images to its logits."""
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    file = _file_of(folder, "*.onnx")
    runtime = folder.name.rpartition("-")[0]
    provider, settings = "CPUExecutionProvider", {}
    if runtime != "onnxruntime":
        execution = json.loads((folder / "provider.json").read_text(encoding="utf-8"))
        provider, settings = execution["provider"], execution["options"]
        if runtime == "onnxruntime_tensorrt":
            with contextlib.suppress(
                ImportError, OSError
            ):  # the import loads the libraries that the provider needs
                __import__("tensorrt")
        module.preload_dlls()
    if runtime == "onnxruntime_tensorrt":
        settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    if provider not in module.get_available_providers():
        raise UnavailableError(f"the installed ONNX Runtime has no {provider}")
    session = module.InferenceSession(str(file), options, providers=[(provider, settings)], enable_fallback=0)
    if session.get_providers()[0] != provider:  # ONNX Runtime drops a provider whose libraries are missing
        raise UnavailableError(f"ONNX Runtime cannot load {provider} here")
    return lambda part: session.run(["logits"], {"input": part})[0]


def run_openvino(module: Any, folder: Path, threads: int) -> Any:
    """Load an OpenVINO model, and return a function from a batch of images to its logits."""
    core = module.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    hint = {"fp32": "f32", "bf16": "bf16"}.get(folder.name.rpartition("-")[2])
    if hint:
        settings["INFERENCE_PRECISION_HINT"] = hint
    compiled = core.compile_model(str(_file_of(folder, "*.xml")), "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if hint == "bf16" and precision != "bf16":
        raise UnavailableError(
            f"the processor does not compute bfloat16; OpenVINO would run it in {precision}"
        )
    return lambda part: compiled({"input": part})[compiled.output("logits")].copy()


def run_ncnn(module: Any, folder: Path, threads: int) -> Any:
    """Load an ncnn model, and return a function from a batch of images to its logits."""
    network = module.Net()
    network.opt.num_threads = threads
    half = folder.name.endswith("-fp16")
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = half
    network.opt.use_bf16_storage = False
    for pattern, load in (("*.param", network.load_param), ("*.bin", network.load_model)):
        file = _file_of(folder, pattern)
        if load(str(file)) != 0:  # continuing would crash the process
            raise ModelError(f"ncnn cannot load {file.name}")

    def logits_of(image: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        code = extractor.input("in0", module.Mat(image).clone())
        code, logits = extractor.extract("out0") if code == 0 else (code, None)
        if code != 0:
            raise ModelError(f"ncnn could not run the network (return code {code})")
        return np.array(logits, np.float32).reshape(-1)

    return lambda part: np.stack([logits_of(image) for image in part])


def run_tensorrt(module: Any, folder: Path, _threads: int) -> Any:
    """Load an engine, and return a function from a batch of images to its logits.

    Only TensorRT and the CUDA runtime library (through ctypes) are needed.
    """
    cuda = _cuda_runtime()
    runtime = module.Runtime(module.Logger(module.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(_file_of(folder, "*.engine").read_bytes())
    if engine is None:
        raise UnavailableError(
            "TensorRT refused the engine: it was built for another GPU or TensorRT version, or it is "
            "version-compatible, and this program does not load such engines"
        )
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]

    def call(part: np.ndarray) -> np.ndarray:
        context.set_input_shape("input", part.shape)
        buffers: dict[str, tuple[ctypes.c_void_p, np.ndarray]] = {}
        try:
            for name in names:
                shape = tuple(context.get_tensor_shape(name))
                host = (
                    part if name == "input" else np.empty(shape, module.nptype(engine.get_tensor_dtype(name)))
                )
                device = ctypes.c_void_p()
                _check(cuda.cudaMalloc(ctypes.byref(device), ctypes.c_size_t(max(1, host.nbytes))))
                buffers[name] = (device, host)
                context.set_tensor_address(name, device.value)
            device, host = buffers["input"]
            _check(
                cuda.cudaMemcpy(device, host.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(host.nbytes), 1)
            )
            if not context.execute_async_v3(0):
                raise ModelError("TensorRT could not run the engine")
            _check(cuda.cudaDeviceSynchronize())
            device, host = buffers["logits"]
            _check(
                cuda.cudaMemcpy(host.ctypes.data_as(ctypes.c_void_p), device, ctypes.c_size_t(host.nbytes), 2)
            )
            return host.astype(np.float32)
        finally:
            for device, _ in buffers.values():
                cuda.cudaFree(device)

    return call


RUNNERS = {
    "ncnn": run_ncnn,
    "onnxruntime": run_onnxruntime,
    "onnxruntime_cuda": run_onnxruntime,
    "onnxruntime_tensorrt": run_onnxruntime,
    "openvino": run_openvino,
    "tensorrt": run_tensorrt,
    "tensorrt_rtx": run_tensorrt,
}
"""The function that loads a target of each runtime."""


def _cuda_runtime() -> Any:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise UnavailableError("there is no NVIDIA driver") from None
    for name in ("libcudart.so", "libcudart.so.13", "libcudart.so.12"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise UnavailableError("the CUDA runtime library (libcudart) was not found")


def _check(code: int) -> None:
    if code:
        raise UnavailableError(f"the CUDA runtime reports error {code}")


def _file_of(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if not files:
        raise ModelError(f"models/{folder.name} has no file {pattern}")
    return files[0]


def _reason(error: BaseException) -> str:
    """Return an exception as one line: its text, or its class if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    return lines[0] if isinstance(error, (OSError, ValueError)) else f"{name}: {lines[0]}"


def _report_failure(text: str) -> None:
    print(f"failed: {text}", file=sys.stderr, flush=True)


def _fail(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
