"""The settings of a profile's data: one typed class for each kind of data set."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stages.fields import Settings, setting

Resize = Literal["bilinear", "bicubic", "nearest", "lanczos", "box"]


class DataSettings(Settings):
    """The settings that all kinds of data set have."""

    name: str = setting(..., "kind of data set", min_length=1)
    image_size: int = setting(32, "side of the networks' square input", unit="pixels", ge=8, le=1024)
    channels: Literal[1, 3] | None = setting(
        None, "colour channels; null: those of the set (1 for grey sets, else 3)"
    )
    resize: Resize = setting("bilinear", "filter that resizes images to image_size (antialiased)")
    mean: list[float] | None = setting(
        None, "per-channel mean on the 0..1 scale; null: computed from the training images"
    )
    std: list[float] | None = setting(
        None, "per-channel standard deviation on the 0..1 scale; null: computed from the training images"
    )
    validation: float = setting(
        0.1, "share of the training images used for validation, stratified", gt=0.0, lt=0.9
    )
    test: float = setting(
        0.2,
        "share of the images used for testing if the set has no test split",
        gt=0.0,
        lt=0.9,
    )
    split_seed: int = setting(0, "seed of the splits; separate from `seed`, so reruns share a test set", ge=0)
    memory_limit_gb: float = setting(
        8.0,
        "sets larger than this when decoded are read from disk batch by batch",
        unit="GB",
        gt=0.0,
        keyed=False,
    )
    workers: int = setting(2, "threads that decode images read from disk", unit="threads", ge=1, keyed=False)

    @model_validator(mode="after")
    def _check_mean_and_std(self) -> DataSettings:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: set both or neither")
        if self.std is not None and min(self.std) <= 0.0:
            raise ValueError("std must be above zero in every channel")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError("mean and std must each have one value for each channel")
            if self.channels is not None and len(self.mean) != self.channels:
                raise ValueError(f"mean and std must have {self.channels} values, one for each channel")
        return self


class DigitsSettings(DataSettings):
    """scikit-learn's handwritten digits: 1,797 real 8x8 scans, shipped with the library."""

    name: Literal["digits"]


class RootedSettings(DataSettings):
    """A set in a folder."""

    root: str | None = setting(
        None,
        "folder of the set (`~` and $VARIABLES are expanded; relative to the working folder)",
        keyed=False,
    )


class IdxSettings(RootedSettings):
    """IDX files, the format of MNIST and Fashion-MNIST: train-images-idx3-ubyte[.gz] and three more."""

    name: Literal["idx"]
    classes: list[str] | None = setting(
        None, "class names by label; null: classes.txt in the root, else the label numbers"
    )


class NpzSettings(RootedSettings):
    """NumPy archives with uint8 images (N,H,W[,C]) and labels (N): train.npz and test.npz, or one file."""

    name: Literal["npz"]
    root: str | None = setting(
        None,
        "folder of the set, or an npz file (`~` and $VARIABLES are expanded)",
        keyed=False,
    )
    classes: list[str] | None = setting(
        None, "class names by label; null: classes.txt in the root, else the label numbers"
    )


class ImageFolderSettings(RootedSettings):
    """Class folders of image files: root/CLASS/*, or root/train/CLASS/* with root/test/CLASS/*."""

    name: Literal["image_folder"]


class TorchvisionSettings(RootedSettings):
    """A torchvision set: CIFAR, MNIST, SVHN, STL-10, ImageNet, flowers, food, pets, signs and others."""

    name: Literal[
        "cifar10",
        "cifar100",
        "svhn",
        "flowers102",
        "food101",
        "fashion_mnist",
        "mnist",
        "stl10",
        "oxford_iiit_pet",
        "eurosat",
        "gtsrb",
        "dtd",
        "imagenette",
        "imagenette_320",
        "imagenette_160",
        "imagenet",
    ]
    download: bool = setting(
        False,
        "let torchvision fetch the set into the root if it is missing (not possible for imagenet)",
        keyed=False,
    )

    @model_validator(mode="after")
    def _check_download(self) -> TorchvisionSettings:
        if self.name == "imagenet" and self.download:
            raise ValueError("ImageNet cannot be downloaded: its authors give it only to registered persons")
        return self
