import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from stages.data.digits import read
from stages.data.load import load
from stages.data.settings import DigitsSettings
from tests.stages.data.conftest import all_pixels


def test_the_pixels_are_scikit_learns() -> None:
    raw, theirs = read(DigitsSettings(name="digits")), load_digits()
    assert np.array_equal(np.asarray(raw.train.images), np.rint(theirs.images * 255 / 16).astype(np.uint8))
    assert raw.train.labels.tolist() == theirs.target.tolist()


def test_the_splits_of_the_flagship_profile() -> None:
    data = load(DigitsSettings(name="digits", validation=0.15, test=0.3))
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert len(data.test) == 539
    assert len(data.validation) == 189
    assert all_pixels(data.test).shape == (539, 32, 32, 1)
    assert np.isclose(data.preprocessing.mean[0], np.mean(all_pixels(data.train) / 255.0), atol=1e-12)
    assert np.isclose(data.preprocessing.std[0], np.std(all_pixels(data.train) / 255.0), atol=1e-12)


def test_reading_them_imports_neither_torch_nor_scikit_learn() -> None:
    program = (
        "import sys; from stages.data.load import load; from stages.data.settings import DigitsSettings;"
        "load(DigitsSettings(name='digits'));"
        "sys.exit(', '.join(m for m in ('torch', 'sklearn', 'torchvision') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
