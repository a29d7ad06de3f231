"""torchvision's sets: their folders and files, and the checksums of the official files.

Imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TorchvisionSet:
    """A set in torchvision's layout.

    Attributes:
        folder: torchvision's folder for the set, relative to the root.
        needed: Files and folders that must exist in it; empty: the four IDX files.
        official: (file name, MD5) of each file that torchvision downloads, as the set's authors publish them;
            empty: torchvision cannot download the set.
        images: The folders of its image files, if it has image files.
        class_names: Optional files with the class names; the first existing one counts.
    """

    folder: str
    needed: tuple[str, ...]
    official: tuple[tuple[str, str], ...]
    images: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


IMAGENET_TRAIN, IMAGENET_VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
IMAGENET_DEVKIT, IMAGENET_META = "ILSVRC2012_devkit_t12.tar.gz", "meta.bin"

_EUROSAT = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
_DTD_LISTS = tuple(f"labels/{part}{cut}.txt" for part in ("train", "val", "test") for cut in range(1, 11))

_CIFAR10 = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")

SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet(
        "cifar-10-batches-py", _CIFAR10, (("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),)
    ),
    "cifar100": TorchvisionSet(
        "cifar-100-python",
        ("train", "test", "meta"),
        (("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
    ),
    "svhn": TorchvisionSet(
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        (
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
    "flowers102": TorchvisionSet(
        "flowers-102",
        ("imagelabels.mat", "setid.mat", "jpg"),
        (
            ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
            ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        images=("jpg",),
    ),
    "food101": TorchvisionSet(
        "food-101",
        ("meta/train.json", "meta/test.json", "images"),
        (("food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),),
        images=("images",),
    ),
    "fashion_mnist": TorchvisionSet(
        "FashionMNIST/raw",
        (),
        (
            ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    "mnist": TorchvisionSet(
        "MNIST/raw",
        (),
        (
            ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
    "stl10": TorchvisionSet(
        "stl10_binary",
        ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"),
        (("stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),),
    ),
    "oxford_iiit_pet": TorchvisionSet(
        "oxford-iiit-pet",
        ("annotations/trainval.txt", "annotations/test.txt", "images"),
        (
            ("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            ("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
        images=("images",),
    ),
    "eurosat": TorchvisionSet(
        "eurosat/2750",
        _EUROSAT,
        (("EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387"),),
        images=_EUROSAT,
    ),
    "gtsrb": TorchvisionSet(
        "gtsrb",
        ("GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv"),
        (
            ("GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478"),
            ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
            ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
        ),
        images=("GTSRB/Training", "GTSRB/Final_Test/Images"),
    ),
    "dtd": TorchvisionSet(
        "dtd/dtd",
        (*_DTD_LISTS, "images"),
        (("dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1"),),
        images=("images",),
    ),
    "imagenette": TorchvisionSet(
        "imagenette2",
        ("train", "val"),
        (("imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612"),),
        images=("train", "val"),
    ),
    "imagenette_320": TorchvisionSet(
        "imagenette2-320",
        ("train", "val"),
        (("imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),),
        images=("train", "val"),
    ),
    "imagenette_160": TorchvisionSet(
        "imagenette2-160",
        ("train", "val"),
        (("imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),),
        images=("train", "val"),
    ),
    "imagenet": TorchvisionSet(
        "",
        ("train", "val"),
        (),
        images=("train", "val"),
        class_names=(IMAGENET_DEVKIT, IMAGENET_META),
    ),
}
