"""`spp-jax app`: a page on this machine that judges the photograph dropped into it."""

import contextlib
import dataclasses
import os
import socket
import tempfile
from collections.abc import Iterator

from spp_jax.cli.arguments import AnyPath, parsed
from spp_jax.cli.program import DONE, run_program
from spp_jax.cli.scored import limited
from spp_jax.compilation import default_cache_dir, use_compilation_cache
from spp_jax.errors import UsageError
from spp_jax.scoring import DEFAULT, judge_of

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Serve a page, on this machine alone, that judges the photograph dropped into it.

    The page says the score, where the photograph is good, and its best crops. Nothing leaves this machine.
    It needs gradio: pip install 'spp_jax[app]'. Ctrl-C ends it.

    Exit status: 0 done; 1 failed; 2 wrong use.
    """

    judge: str = DEFAULT
    """A judge that ships: quality, beauty, all (both of them), or compact, a small one."""
    checkpoint: AnyPath | None = None
    """Folder of a run, the --out of spp-jax train. Default: the judge that --judge names."""
    port: int = 7860
    """Port of the page. 0: any that is free; it is printed."""
    host: str = "127.0.0.1"
    """Address of the page. At any but this machine's own, whoever reaches it can use it."""
    most_mib: int = 64
    """Files of more mebibytes are refused."""
    refuse_pixels: int | None = None
    """Photographs of more pixels are refused. Default: as in training."""
    refuse_seconds: float | None = None
    """Photographs that take more seconds of processor time to decode are refused. Default: as in training,
    which is 10 if nothing else was asked for."""
    cache_dir: str = default_cache_dir()
    """Folder for compiled programs, also one that several hosts share, or gs://... Whoever can write there
    can run programs as you. Default: $JAX_COMPILATION_CACHE_DIR, or a folder that is private to you."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""

    def work() -> int:
        options = parsed(Options, "spp-jax app", arguments)
        if options.most_mib < 1:
            raise UsageError(f"most_mib must be at least 1, not {options.most_mib}", "most_mib")
        with _listening(options.host, options.port) as listening, tempfile.TemporaryDirectory() as folder:
            # Read when gradio is first imported: no telemetry, and what is uploaded goes when we do.
            os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
            try:
                from spp_jax.cli.app_page import application, serve
            except ModuleNotFoundError as error:
                if not error.name or error.name.startswith("spp_jax"):
                    raise
                raise UsageError(f"spp-jax app needs {error.name}: pip install 'spp_jax[app]'") from None
            use_compilation_cache(options.cache_dir)
            scorer = judge_of(options.judge, options.checkpoint)
            limited(scorer, options.refuse_pixels, options.refuse_seconds)
            app = application(scorer, options.host, options.most_mib)
            print(f"{_address(listening)}  (Ctrl-C ends it)", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                serve(app, listening)
        return DONE

    return run_program("spp-jax app", Options, work)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound before anything is loaded.

    Raises:
        UsageError: it cannot be.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"port must be from 0 to 65535, not {port}", "port")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(kind, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"host {host}: {error.strerror or error}", "host") from None
    with found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
        except OSError as error:
            raise UsageError(f"port {port} of {host}: {error.strerror or error}", "port") from None
        yield found


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
