"""The advice of transformers to install torch: unsaid for the time of an import, no longer."""

import os

import pytest

from resprune_jax.models.checkpoint.advice import _SWITCH, without_advice


@pytest.mark.parametrize("before", [None, "", "1"])
def test_the_switch_is_left_as_the_user_has_set_it(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(_SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(_SWITCH, before)
    with pytest.raises(ImportError), without_advice():
        assert os.environ[_SWITCH] == "1"
        raise ImportError
    assert os.environ.get(_SWITCH) == before
