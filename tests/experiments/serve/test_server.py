"""OpenAI's client against a real server of the pocket model."""

import asyncio
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.experiments.serve.conftest import KEY, Scene, Served, data_url, messages, png

pytestmark = pytest.mark.serve

KEEP = {"keep": 0.25}


def ask(client: Any, asked: list[dict[str, Any]], **more: Any) -> Any:
    own = {"model": "pocket", "max_tokens": 16, "extra_body": KEEP, **more}
    return client.chat.completions.create(messages=asked, **own)


def get(served: Served, path: str, key: str = KEY, method: str = "GET") -> tuple[int, bytes, Any]:
    parts = urlsplit(served.url)
    made = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    made.request(method, path, headers={"authorization": f"Bearer {key}"} if key else {})
    response = made.getresponse()
    content = response.read()
    made.close()
    return response.status, content, response.headers


def test_an_image_and_a_question(client: Any, scenes: list[Scene], answers: list[str]) -> None:
    for number in (1, 2):
        reply = ask(client, scenes[number].messages)
        (choice,) = reply.choices
        assert (choice.message.content, choice.finish_reason) == (answers[number], "stop")
        usage = reply.usage
        assert (usage.visual_tokens, usage.visual_tokens_kept) == (144, 36)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        about = reply.model_extra["resprune"]
        assert (about["visual_tokens"], about["visual_tokens_kept"], about["keep"]) == (
            144,
            36,
            0.25,
        )
        assert about["method"] == "resprune" and about["nouns"]
        times = about["timings"]
        assert times["total"] >= times["queue"] + times["decode"] > 0
    again = ask(client, scenes[1].messages)
    assert again.choices[0].message.content == answers[1]
    assert again.model_extra["resprune"]["image_cached"]


def test_each_request_has_its_own_options(client: Any, pocket: Any, scenes: list[Scene]) -> None:
    scene = scenes[3]
    for call in (
        {"keep": 9}, {"keep": 40, "alpha": 0.0}, {"keep": None}, {"method": "none"},
        {"keep": 20, "method": "fastv"}, {"keep": 16, "method": "downsample"},
        {"keep": 30, "method": "resprune", "method_settings": {"aggregate": "mean"}},
    ):  # fmt: skip
        wanted = pocket.generate(scene.pixels, scene.question, max_new_tokens=16, **call)
        reply = ask(client, scene.messages, extra_body=call)
        about = reply.model_extra["resprune"]
        assert reply.choices[0].message.content == wanted.texts[0]
        assert (about["visual_tokens"], about["visual_tokens_kept"]) == (
            wanted.visual_tokens[0], wanted.kept[0],
        )  # fmt: skip


def test_text_alone_several_images_and_a_conversation(
    client: Any, pocket: Any, scenes: list[Scene]
) -> None:
    from resprune_jax.models import Conversation, Turn

    wanted = pocket.generate(None, "Is it red?", max_new_tokens=8).texts[0]
    reply = ask(client, [{"role": "user", "content": "Is it red?"}], max_tokens=8)
    assert reply.choices[0].message.content == wanted
    assert reply.usage.model_extra["visual_tokens"] == 0
    talk = [*scenes[0].messages, {"role": "assistant", "content": "yes"},
            *scenes[1].messages]  # fmt: skip
    before = (Turn("user", scenes[0].question, 1), Turn("assistant", "yes"))
    made = pocket.generate(
        [[scenes[0].pixels, scenes[1].pixels]], [Conversation(scenes[1].question, before)],
        keep=0.25, max_new_tokens=16,
    )  # fmt: skip
    reply = ask(client, talk)
    assert reply.choices[0].message.content == made.texts[0]
    assert reply.usage.model_extra["visual_tokens"] == made.visual_tokens[0] == 288


def test_a_stream_says_what_the_answer_says(client: Any, scenes: list[Scene]) -> None:
    drawn = {"temperature": 50.0, "seed": 11, "max_tokens": 30}
    whole = ask(client, scenes[4].messages, **drawn)
    text = whole.choices[0].message.content
    events = list(
        ask(
            client, scenes[4].messages, stream=True, stream_options={"include_usage": True}, **drawn
        )
    )
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) > 2  # not all at the end
    ends = [event.choices[0].finish_reason for event in events if event.choices]
    assert set(ends[:-1]) == {None} and ends[-1] == whole.choices[0].finish_reason
    assert events[-1].choices == [] and events[-1].usage == whole.usage
    assert events[-2].model_extra["resprune"]["seed"] == 11
    assert len({event.id for event in events}) == 1
    stop = text[len(text) // 2 :][:3]
    cut = ask(client, scenes[4].messages, stop=[stop, "never there"], **drawn)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < whole.usage.completion_tokens
    streamed = ask(client, scenes[4].messages, stop=stop, stream=True, **drawn)
    assert "".join(e.choices[0].delta.content or "" for e in streamed) == text[: text.index(stop)]


def test_models_health_and_metrics(client: Any, served: Served) -> None:
    (model,) = client.models.list().data
    assert model.id == "pocket" and model.model_extra["resprune"]["max_model_len"] == 2048
    assert client.models.retrieve("pocket").id == "pocket"
    status, content, _ = get(served, "/health", key="")
    assert status == 200 and json.loads(content)["status"] == "ok"
    status, content, headers = get(served, "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    told = content.decode()
    for name in ("requests_total", "batches_total", "waiting_requests", "image_cache_hits",
                 'visual_tokens_total{stage="kept"}', "request_seconds_bucket"):  # fmt: skip
        assert f"resprune_{name}" in told


def test_64_at_a_time_and_none_is_mixed_up(
    served: Served, scenes: list[Scene], answers: list[str]
) -> None:
    from openai import AsyncOpenAI

    async def all_of_them() -> list[Any]:
        async with AsyncOpenAI(base_url=served.url, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(ask(client, scene.messages) for scene in scenes))

    replies = asyncio.run(all_of_them())
    assert [reply.choices[0].message.content for reply in replies] == answers
    rows = [reply.model_extra["resprune"]["batch_rows"] for reply in replies]
    assert max(rows) > 8
    assert len({reply.id for reply in replies}) == 64


def test_clients_that_go_away_free_the_queue(served: Served, scenes: list[Scene]) -> None:
    from openai import AsyncOpenAI

    async def leave() -> int:
        async with AsyncOpenAI(base_url=served.url, api_key=KEY, max_retries=0) as client:
            # Each is a batch of its own, so that they wait for one another.
            tasks = [
                asyncio.ensure_future(
                    ask(client, scenes[n].messages, extra_body={"repetition_penalty": 1 + n / 1e3})
                )
                for n in range(40)
            ]
            most = 0
            while most < 20:
                await asyncio.sleep(0.05)
                most = max(most, waiting(served))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return most

    assert asyncio.run(leave()) >= 20
    begin = time.monotonic()
    while waiting(served) and time.monotonic() - begin < 20:
        time.sleep(0.05)
    assert waiting(served) == 0
    told = get(served, "/metrics")[1].decode()
    assert 'resprune_cancelled_requests_total{stage="queue"}' in told


def waiting(served: Served) -> int:
    return int(json.loads(get(served, "/health")[1])["waiting"])


def test_pictures_of_the_folder_and_of_an_allowed_host(
    client: Any, served: Served, scenes: list[Scene], answers: list[str]
) -> None:
    inside = (served.folder / "deep" / "a b.png").resolve()
    for url in (inside.as_uri(), "deep/a b.png", str(inside), "in.png", "deep/../deep/a b.png",
                f"http://{served.host}/picture.png"):  # fmt: skip
        reply = ask(client, messages(url, scenes[0].question))
        assert reply.choices[0].message.content == answers[0]
    assert served.asked.count("/picture.png") == 1
    assert data_url(png(scenes[0].pixels)) != inside.as_uri()
