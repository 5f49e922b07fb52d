"""The command `serve`: its options, the socket, the server's life from its ready line to the end of its grace."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.errors import UserError

if TYPE_CHECKING:
    import uvicorn

    from kv_transition.engines.local import LocalEngine
    from kv_transition.serve.worker import Worker

TEXT = "Serve a model over an OpenAI-compatible API in which every request names its KV method and budget."
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: Seconds after the grace in which cancelled requests still get their error.
LAST_WORDS_S = 5


def _whole(least: int, most: int) -> Any:
    """A whole number within limits, as argparse takes a type."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: give a whole number from {least} to {most}")
        return value

    read.__name__ = "whole number"
    return read


def _real(least: float, most: float) -> Any:
    """A number within limits, as argparse takes a type."""

    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: give a number from {least:g} to {most:g}")
        return value

    read.__name__ = "number"
    return read


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to a parser's subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve", help=TEXT, description=TEXT, allow_abbrev=False
    )
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    option = parser.add_argument
    option("--model", required=True, metavar="PATH", help="folder of a model, as the experiments take it")
    option(
        "--engine",
        choices=("reference", "kvpress"),
        default="reference",
        help="reference: Llama models in numpy; kvpress: models of transformers (default: reference)",
    )
    option("--device", choices=("auto", "cpu", "cuda"), default="auto", help="kvpress: where the model runs")
    option(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="float32",
        help="kvpress: number format (default: float32; auto: bfloat16 on a GPU)",
    )
    option(
        "--attn-implementation",
        choices=("sdpa", "eager"),
        default="sdpa",
        help="kvpress: attention; observed_attention needs eager (default: sdpa)",
    )
    option("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    option(
        "--port", type=_whole(0, 65535), default=8000, metavar="P", help="0 picks a free one (default: 8000)"
    )
    option("--name", metavar="NAME", help="the model's name in requests (default: its folder's)")
    option(
        "--queue",
        type=_whole(1, 10**6),
        default=64,
        metavar="N",
        help="requests that may wait beside the one that is answered; more get 429 (default: 64)",
    )
    option(
        "--max-body-mb",
        type=_real(0.001, 1024),
        default=8.0,
        metavar="MB",
        help="largest request in MiB; larger ones get 413 (default: 8)",
    )
    option(
        "--api-key-env",
        metavar="VAR",
        help="environment variable with the key that clients must show (default: none needed)",
    )
    option(
        "--unknown-token-limit",
        type=_real(0, 1),
        default=0.2,
        metavar="SHARE",
        help="share of tokens outside the model's vocabulary above which a prompt is refused (default: 0.2)",
    )
    option(
        "--grace",
        type=_real(0, 3600),
        default=30.0,
        metavar="S",
        help="seconds that requests have to end after SIGTERM (default: 30)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it.

    Returns
    -------
    0 after an orderly end.

    Raises
    ------
    UserError
        For a missing extra, model or key, and an address that cannot be listened on.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"serve: {error.name} is not installed; install the extra: pip install 'kv-transition[serve]'"
        ) from None
    from kv_transition.serve.app import Service, build_app
    from kv_transition.serve.worker import Worker

    key = _key(arguments.api_key_env)
    # Before the weights are read, so that a taken port is told at once.
    with _bound(arguments.host, arguments.port) as listener:
        engine = _engine(arguments)
        _log_to_stderr()
        if key is None and arguments.host not in LOOPBACK:
            sys.stderr.write(
                f"warning: --host {arguments.host} without --api-key-env: whoever reaches this address may use it\n"
            )
        name = arguments.name or Path(arguments.model).resolve().name
        worker = Worker(arguments.queue)
        app = build_app(Service(engine, worker, name, int(arguments.max_body_mb * 2**20), key))
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(arguments.grace) + LAST_WORDS_S,
        )
        ready = f"serving {name} on http://{_address(listener, arguments.host)}/v1"
        _server(config, worker, arguments.grace, ready).run(sockets=[listener])
    return 0


def _engine(arguments: argparse.Namespace) -> LocalEngine:
    limit = arguments.unknown_token_limit
    if arguments.engine == "kvpress":
        from kv_transition.engines.kvpress_engine import KVPressEngine

        return KVPressEngine(
            arguments.model,
            unknown_token_limit=limit,
            device=arguments.device,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
        )
    from kv_transition.engines.reference import ReferenceEngine

    if arguments.dtype != "float32":
        raise UserError(
            f"--dtype {arguments.dtype}: the reference engine computes in float32; add --engine kvpress"
        )
    return ReferenceEngine(arguments.model, unknown_token_limit=limit)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    from kv_transition.schema_http import VARIABLE_NAME

    if not VARIABLE_NAME.fullmatch(variable):
        raise UserError("--api-key-env: give the name of an environment variable, never the key itself")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"--api-key-env: the environment variable {variable} is not set; put the key in there"
        )
    return key


def _bound(host: str, port: int) -> socket.socket:
    """A socket with the address, which nobody can connect to yet."""
    # The protocol is named for asyncio, which sends small packets at once only where it is known to be TCP.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); name another one, or port 0 for a "
            "free one"
        ) from None
    return listener


def _address(listener: socket.socket, host: str) -> str:
    return f"[{host}]:{listener.getsockname()[1]}" if ":" in host else f"{host}:{listener.getsockname()[1]}"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("kv_transition.serve")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


def _server(config: uvicorn.Config, worker: Worker, grace: float, ready: str) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Says when it accepts; ends when all is answered, or with the grace, or a second signal, which are no failures."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            self.loop = asyncio.get_running_loop()
            await super().startup(sockets)
            sys.stdout.write(f"{ready}\n")
            sys.stdout.flush()

        def handle_exit(self, sig: int, frame: Any) -> None:
            # The parent class raises the signal again at the end, which would hide the exit code 0.
            if self.should_exit:
                self.loop.call_soon_threadsafe(worker.close)
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            end_of_grace = asyncio.get_running_loop().call_later(grace, worker.close)
            await super().shutdown(sockets)
            end_of_grace.cancel()

    return Server(config)
