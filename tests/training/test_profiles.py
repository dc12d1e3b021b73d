"""Profiles that cannot be read."""

import pytest

from stellarperceptron.training.profiles import read_profile


@pytest.mark.parametrize("content", [b"a = " + b"[" * 100_000, "epochs = 3".encode("utf-16")])
def test_what_is_no_toml_is_named(tmp_path, content):
    (tmp_path / "p.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.toml is no TOML"):
        read_profile(tmp_path / "p.toml", "stage_1")
