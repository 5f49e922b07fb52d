"""The same prompts asked by requests, aiohttp or the openai package, as one would write it: answers kept in a list.

python clients.py requests BASE_URL --concurrency 8 --items 400 --size 32768

Prints what the asking cost as JSON: wall and CPU seconds of this process, without start and imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def chat(number: int, size: int) -> list[Any]:
    """A prompt of `size` bytes that ends in its number."""
    filler = "the quick brown fox jumps over the lazy dog " * (size // 44 + 1)
    content = f"{filler[: size - 30]} question {number}"
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": content}]


def body(number: int, size: int) -> dict[str, Any]:
    """The request."""
    return {"model": "served", "temperature": 0, "max_tokens": 64, "messages": chat(number, size)}


def in_threads(ask: Callable[[int], str], items: int, concurrency: int) -> list[str]:
    """All answers, asked by so many threads."""
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(ask, range(items)))


def with_requests(base_url: str, concurrency: int, items: int, size: int) -> list[str]:
    """One session a thread, as sessions must not be shared."""
    import requests

    own = threading.local()

    def ask(number: int) -> str:
        if not hasattr(own, "session"):
            own.session = requests.Session()
        reply = own.session.post(f"{base_url}/chat/completions", json=body(number, size), timeout=60)
        reply.raise_for_status()
        return str(reply.json()["choices"][0]["message"]["content"])

    return in_threads(ask, items, concurrency)


def with_openai(base_url: str, concurrency: int, items: int, size: int) -> list[str]:
    """One client for all threads, as its documentation has it."""
    import openai

    client = openai.OpenAI(base_url=base_url, api_key="none")

    def ask(number: int) -> str:
        reply = client.chat.completions.create(
            model="served", temperature=0, max_tokens=64, messages=chat(number, size)
        )
        return str(reply.choices[0].message.content)

    return in_threads(ask, items, concurrency)


def with_aiohttp(base_url: str, concurrency: int, items: int, size: int) -> list[str]:
    """One session, and as many tasks as may be in flight."""
    import aiohttp

    async def ask_all() -> list[str]:
        answers = [""] * items
        numbers = iter(range(items))
        async with aiohttp.ClientSession() as session:

            async def work() -> None:
                for number in numbers:
                    url = f"{base_url}/chat/completions"
                    async with session.post(url, json=body(number, size)) as reply:
                        reply.raise_for_status()
                        answers[number] = (await reply.json())["choices"][0]["message"]["content"]

            await asyncio.gather(*(work() for _ in range(concurrency)))
        return answers

    return asyncio.run(ask_all())


CLIENTS = {"requests": with_requests, "openai": with_openai, "aiohttp": with_aiohttp}


def main() -> None:
    """Ask, and print the cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("base_url")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--size", type=int, default=32 * 1024)
    options = parser.parse_args()
    client = CLIENTS[options.client]
    # The first call imports and sets up what later ones find ready.
    client(options.base_url, options.concurrency, options.concurrency, options.size)
    wall, cpu = time.perf_counter(), time.process_time()
    answers = client(options.base_url, options.concurrency, options.items, options.size)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert all(answer.startswith("word") for answer in answers)
    print(json.dumps({"wall_s": wall, "cpu_s": cpu}))


if __name__ == "__main__":
    main()
