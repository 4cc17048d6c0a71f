"""Requests as the admission reads them: what they hold, what they may say, what they are told."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from resprune_jax.experiments.serve.command import ServeOptions
from resprune_jax.experiments.serve.requests.admission import Admission, Work
from resprune_jax.experiments.serve.requests.room import Hold, Room
from resprune_jax.experiments.serve.service import Service
from resprune_jax.experiments.serve.telling.errors import RequestError
from resprune_jax.models import LVLM
from resprune_jax.models.prompts.options import CallOptions
from tests.experiments.serve.conftest import data_url, messages, png

Admit = Callable[..., Work]

URL = data_url(png(np.random.default_rng(3).integers(0, 255, (40, 30, 3), np.uint8)))


@pytest.fixture
def admission(lvlm: LVLM, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Admission]:
    """Makes the admission of a server with defaults of its own."""
    monkeypatch.setattr(lvlm.encoder, "name", lvlm.encoder.name)  # a server gives it its own

    def make(**defaults: Any) -> Admission:
        options = ServeOptions(model="it")
        return Service(lvlm, "it", options, CallOptions(**defaults), ())._admission

    return make


def body(asked: list[dict[str, Any]] | None = None, **more: Any) -> bytes:
    return json.dumps({"model": "it", "messages": asked or messages(None, "Red?"), **more}).encode()


def test_what_waits_holds_its_pictures_alone(admission: Callable[..., Admission]) -> None:
    room, own = Room(10**6), admission()
    with Hold(room) as hold:
        _, work = own.admit(body(messages(URL, "Is it red?")), hold)
        assert room.taken == 3 * 40 * 30
        assert URL not in repr(work)  # it is as large as the body, which is let go
    small = Room(len(URL) // 2)  # a file takes room too
    with Hold(small) as hold, pytest.raises(RequestError) as caught:
        own.admit(body(messages(URL, "Is it red?")), hold)
    assert caught.value.status == 429 and small.taken == 0


def test_no_message_names_a_folder_of_the_server(
    lvlm: LVLM, admission: Callable[..., Admission]
) -> None:
    own = admission()
    # What a question's place is found by, in an earlier message: the template cannot be used.
    asked = [*messages(None, "resprune0question5f1c7d2e9b"), *messages(None, "Red?")]
    with Hold(Room(10**6)) as hold, pytest.raises(RequestError) as caught:
        own.admit(body(asked), hold)
    assert "chat template of it cannot" in caught.value.message
    assert str(lvlm.path) not in caught.value.message


@pytest.mark.parametrize(
    ("defaults", "asked", "temperature"),
    [
        ({"sample": True}, {"temperature": 0}, 0),
        ({"temperature": 0.0}, {"sample": True}, 1),
        ({"temperature": 0.5}, {"temperature": 0}, 0),
        ({"sample": True}, {"temperature": 0.25}, 0.25),
        ({"temperature": 0.5}, {"sample": True}, 0.5),
    ],
)
def test_a_request_goes_before_the_server(
    admission: Callable[..., Admission],
    defaults: dict[str, Any],
    asked: dict[str, Any],
    temperature: float,
) -> None:
    with Hold(Room(10**6)) as hold:
        _, work = admission(**defaults).admit(body(**asked), hold)
    assert work.options.temperature == temperature


def test_settings_of_a_method(admission: Callable[..., Admission]) -> None:
    own = admission(alpha=0.5, keep=3)
    with Hold(Room(10**6)) as hold:
        for asked, alpha in (({}, 0.5), ({"method_settings": {"alpha": 0.9}}, 0.9),
                             ({"method_settings": {"aggregate": "mean"}}, 0.5),
                             ({"method_settings": {"alpha": 0.9}, "alpha": 0.1}, 0.1)):  # fmt: skip
            _, work = own.admit(body(messages(URL, "Red?"), **asked), hold)
            assert work.options.settings["alpha"] == alpha
        for entries in ([0.5], [0.5, 9.0]):  # those of a batch's rows would be other requests'
            with pytest.raises(RequestError, match="alpha is one value"):
                own.admit(body(messages(URL, "Red?"), method_settings={"alpha": entries}), hold)
