"""Profiles that cannot be read."""

import pytest

from stellarperceptron.training.profiles import DataProfile, Profile, TrainingOptions, read_profile


@pytest.mark.parametrize("content", [b"a = " + b"[" * 100_000, "epochs = 3".encode("utf-16")])
def test_what_is_no_toml_is_named(tmp_path, content):
    (tmp_path / "p.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.toml is no TOML"):
        read_profile(tmp_path / "p.toml", "stage_1")


def test_rehearsal_adds_its_share_of_the_stars_of_a_batch():
    data = DataProfile(kind="observed", synthetic_share=0.2, synthetic_window_share=0.5)
    training = TrainingOptions(batch_size=32, window_share=0.1, subset_share=0.05)
    options = Profile(data=data, training=training).rehearsal_options()
    assert options.batch_size / (options.batch_size + 32) == 0.2
    assert (options.window_share, options.subset_share) == (0.5, 0.05)


def test_windows_and_subsets_of_the_rehearsal_are_shares(tmp_path):
    (tmp_path / "p.toml").write_text("[stage_2.training]\nsubset_share = 0.3\n")
    with pytest.raises(ValueError, match="synthetic_window_share"):
        read_profile(tmp_path / "p.toml", "stage_2", ["data.synthetic_window_share=0.8"])
