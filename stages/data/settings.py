"""What a profile may say of its data: one typed class a kind of data set."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stages.fields import Settings, setting

Resize = Literal["bilinear", "bicubic", "nearest", "lanczos", "box"]


class DataSettings(Settings):
    """What every kind of data set shares."""

    name: str = setting(..., "kind of data set", min_length=1)
    image_size: int = setting(32, "side of the square image the networks see", unit="pixels", ge=8, le=1024)
    channels: Literal[1, 3] | None = setting(
        None, "colour channels; null keeps the set's own (1 for grey sets, else 3)"
    )
    resize: Resize = setting("bilinear", "how images are brought to image_size (antialiased)")
    mean: list[float] | None = setting(
        None, "per-channel mean on the 0..1 scale; null: computed from the training images"
    )
    std: list[float] | None = setting(
        None, "per-channel standard deviation on the 0..1 scale; null: computed likewise"
    )
    validation: float = setting(
        0.1, "share of the training images set aside for validation, stratified", gt=0.0, lt=0.9
    )
    test: float = setting(
        0.2,
        "share set aside for testing where the set has no test split of its own",
        gt=0.0,
        lt=0.9,
    )
    split_seed: int = setting(0, "seed of the splits; apart from `seed`, so reruns share a test set", ge=0)
    memory_limit_gb: float = setting(
        8.0,
        "sets larger than this when decoded are read from disk batch by batch",
        unit="GB",
        gt=0.0,
        keyed=False,
    )
    workers: int = setting(2, "threads that decode images read from disk", unit="threads", ge=1, keyed=False)

    @model_validator(mode="after")
    def _constants_fit(self) -> DataSettings:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or neither")
        if self.std is not None and min(self.std) <= 0.0:
            raise ValueError("std must be above zero in every channel")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError("mean and std must have one value a channel each")
            if self.channels is not None and len(self.mean) != self.channels:
                raise ValueError(f"mean and std must have {self.channels} values, one a channel")
        return self


class DigitsSettings(DataSettings):
    """scikit-learn's handwritten digits: 1,797 real 8x8 scans, shipped with the library."""

    name: Literal["digits"]


class RootedSettings(DataSettings):
    """A set that lies in a folder."""

    root: str | None = setting(
        None,
        "folder the set lies in (`~` and $VARIABLES are expanded; relative to the working folder)",
        keyed=False,
    )


class IdxSettings(RootedSettings):
    """IDX files as MNIST and Fashion-MNIST come: train-images-idx3-ubyte[.gz] and its three companions."""

    name: Literal["idx"]
    classes: list[str] | None = setting(
        None, "class names by label; null: classes.txt in the root, else the label numbers"
    )


class NpzSettings(RootedSettings):
    """NumPy archives with uint8 images (N,H,W[,C]) and labels (N): train.npz and test.npz, or one file."""

    name: Literal["npz"]
    root: str | None = setting(
        None,
        "folder the set lies in, or one npz file (`~` and $VARIABLES are expanded)",
        keyed=False,
    )
    classes: list[str] | None = setting(
        None, "class names by label; null: classes.txt in the root, else the label numbers"
    )


class ImageFolderSettings(RootedSettings):
    """Class folders of image files: root/CLASS/*.jpg, or root/train/CLASS/… with root/test/CLASS/…"""

    name: Literal["image_folder"]


class TorchvisionSettings(RootedSettings):
    """A set of torchvision's: CIFAR, MNIST, SVHN, STL-10, ImageNet, flowers, food, pets, signs and others."""

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
        "let torchvision fetch the set into the root if it is not there (all but imagenet)",
        keyed=False,
    )

    @model_validator(mode="after")
    def _can_be_fetched(self) -> TorchvisionSettings:
        if self.name == "imagenet" and self.download:
            raise ValueError("ImageNet cannot be downloaded: its authors give it to registered persons only")
        return self
