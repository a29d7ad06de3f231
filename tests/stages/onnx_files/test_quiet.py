from __future__ import annotations

import logging
import warnings

import pytest

from stages.onnx_files.quiet import quiet


def _chatter() -> None:
    print("a print")
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("torch.onnx").error("an exporter's line")


def test_chatter_is_swallowed_and_comes_back_after(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        _chatter()
    assert capsys.readouterr().out == ""
    with pytest.warns(UserWarning, match="a warning"):
        _chatter()
    assert "a print" in capsys.readouterr().out


def test_the_root_logger_is_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    before = list(logging.getLogger().handlers)
    with quiet():
        logging.warning("the quantizer warns through the root logger")
    assert caplog.records == []
    assert logging.getLogger().handlers == before
    logging.warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_whoever_asks_for_details_hears_them(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("kdpipe")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with quiet(), pytest.warns(UserWarning, match="a warning"):
            _chatter()
    finally:
        logger.setLevel(level)
    assert "a print" in capsys.readouterr().out
