import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.images import ImageFormat, decode
from stages.data.preprocessing import Preprocessing, resized


def test_survives_json_exactly() -> None:
    contract = Preprocessing(32, 3, "bicubic", True, 1 / 255, (0.1, 1 / 3, 0.7), (0.2, 0.3, 1 / 7))
    assert Preprocessing.from_json(json.loads(json.dumps(contract.as_json()))) == contract
    assert contract.as_json()["crop"] == "center"


def test_refuses_what_is_no_contract() -> None:
    facts = Preprocessing(32, 1, "box", True, 1 / 255, (0.1,), (0.2,)).as_json()
    with pytest.raises(ValueError, match="preprocessing"):
        Preprocessing.from_json({**facts, "rotate": 90})
    del facts["mean"]
    with pytest.raises(ValueError, match="mean"):
        Preprocessing.from_json(facts)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 300))
def test_shorter_side_becomes_the_size_and_the_ratio_is_kept(width: int, height: int, size: int) -> None:
    new_width, new_height = resized(width, height, size)
    assert min(new_width, new_height) == size
    shorter, longer = min(width, height), max(width, height)
    assert abs(max(new_width, new_height) - longer * size / shorter) <= 0.5
    assert (new_width >= new_height) == (width >= height) or new_width == new_height


def test_the_crop_is_that_of_the_contract() -> None:
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 200  # the centre square
    assert (decode(wide, ImageFormat(8, 1, "nearest")) == 200).all()
    odd = np.tile(np.arange(11, dtype=np.uint8), (8, 1))
    assert decode(odd, ImageFormat(8, 1, "nearest"))[0, :, 0].tolist() == list(
        range(1, 9)
    )  # starts at (11 - 8) // 2
