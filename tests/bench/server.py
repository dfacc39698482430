"""The other side: Debian's nginx answering as Heify's API and storage do, and how much it could answer."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from heifyd.sandbox import CONFIGURATION_ID, EVALUATOR_ID, PARTICIPANT_ID
from tests.bench.measure import Accounted, await_that
from tests.bench.report import BenchError

_MEMORY: Final = Path("/dev/shm")

_SIGNED: Final = "host%3Bx-amz-meta-configuration_id%3Bx-amz-meta-evaluator_id"
_QUERY: Final = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAEXAMPLE%2F20250101%2Feu-central-1%2Fs3%2Faws4_request"
    f"&X-Amz-Date=20250101T000000Z&X-Amz-Expires=300&X-Amz-SignedHeaders={_SIGNED}&X-Amz-Signature={'0' * 64}"
)


def answer(url: str, transcription_id: str) -> str:
    """Write the answer to /request-upload-url, with an upload URL below `url`."""
    return (
        f'{{"data":{{"transcription_id":"{transcription_id}","upload_url":"{url}/upload/{transcription_id}?{_QUERY}",'
        f'"configuration_id":"{CONFIGURATION_ID}","evaluator_id":"{EVALUATOR_ID}",'
        f'"participant_id":"{PARTICIPANT_ID}","name":"call"}}}}'
    )


# Requests are handed on to a second server over a socket: nginx reads a request's whole body before that, as Heify
# does, while `return` answers before it, and its WebDAV answers 201, which is not what S3 says.
_CONFIG: Final = """
{user}
daemon off;
worker_processes {workers};
pid {root}/nginx.pid;
error_log {root}/error.log warn;
events {{ worker_connections 512; }}
http {{
    log_format brief '$request_method $uri $status $content_length';
    access_log {root}/access.log brief buffer=64k flush=100ms;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    client_max_body_size 300m;
    client_body_buffer_size 1m;
    keepalive_requests 100000000;
    keepalive_timeout 300s;
    upstream answers {{ server unix:{root}/answers; keepalive 32; keepalive_requests 100000000; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Content-Length "";
    proxy_pass_request_body off;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://answers; }}
        location /upload/ {{ client_body_in_file_only clean; proxy_pass http://answers; }}
    }}
    server {{
        listen 127.0.0.1:{fault_port};
        location / {{ return 503 '{{"error":{{"message":"Service unavailable","code":503}}}}'; }}
    }}
    server {{
        listen unix:{root}/answers;
        access_log off;
        keepalive_requests 100000000;
        keepalive_timeout 300s;
        default_type application/json;
        location / {{ return 404 '{{"error":{{"message":"Not found","code":404}}}}'; }}
        location = /request-upload-url {{ return 200 '{answer}'; }}
        location /upload/ {{ return 200; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many requests a second the server has answered to a client in C over four connections."""

    posts_per_s: float
    puts_per_s: float

    @property
    def uploads_per_s(self) -> float:
        return 1 / (1 / self.posts_per_s + 1 / self.puts_per_s)


class Server:
    """nginx on two loopback ports: `url` stores every upload in memory, `fault_url` answers 503 to all."""

    def __init__(self, root: Path, process: Accounted, port: int, fault_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.fault_url = f"http://127.0.0.1:{fault_port}"
        self._root = root
        self._process = process
        self._read_to = 0

    def cpu_s(self) -> float:
        return self._process.cpu_s()

    def forget(self) -> None:
        """Let `must_have_stored` count from now on."""
        await_that(lambda: not self._new_lines(), "the end of the server's log", every_s=0.25)

    def must_have_stored(self, files: int, size_bytes: int) -> None:
        """Raise BenchError unless so many whole uploads have arrived since `forget`, each under its own URL."""
        arrived: list[str] = []

        def count() -> bool:
            arrived.extend(line for line in self._new_lines() if line.startswith("PUT "))
            return len(arrived) >= files

        await_that(count, f"{files} uploads at the server", 5.0, every_s=0.1)
        whole = {line.split()[1] for line in arrived if line.endswith(f" 200 {size_bytes}")}
        if len(whole) != files or len(arrived) != files:
            raise BenchError(f"of {files} uploads {len(arrived)} arrived, {len(whole)} of them whole")

    def _new_lines(self) -> list[str]:
        with (self._root / "access.log").open("rb") as log:
            log.seek(self._read_to)
            whole, _, _ = log.read().rpartition(b"\n")
        self._read_to += len(whole) + 1 if whole else 0
        return whole.decode("ascii").splitlines()

    def capacity(self, content: bytes, requests: int) -> Capacity:
        """Measure with ab (apache2-utils), kept-alive connections, as many as heifyd has workers."""
        body, recording = self._root / "body.json", self._root / "capacity.wav"
        body.write_text(f'{{"configuration_id":"{CONFIGURATION_ID}","name":"call"}}', "ascii")
        recording.write_bytes(content)
        posts_per_s = _ab(requests, "-T", "application/json", "-p", body, f"{self.url}/request-upload-url")
        puts_per_s = _ab(requests, "-T", "audio/wav", "-u", recording, f"{self.url}/upload/capacity")
        return Capacity(posts_per_s, puts_per_s)


def _ab(requests: int, *arguments: str | Path) -> float:
    if shutil.which("ab") is None:
        raise BenchError("the server's capacity is measured with ab (Debian: apache2-utils)")
    done = subprocess.run(
        ["ab", "-q", "-k", "-c", "4", "-n", str(requests), *arguments], capture_output=True, text=True, check=False
    )
    found = re.search(r"^Requests per second:\s+([\d.]+)", done.stdout, re.MULTILINE)
    if found is None or "Non-2xx" in done.stdout or not re.search(r"^Failed requests:\s+0$", done.stdout, re.MULTILINE):
        raise BenchError(f"ab: {done.stdout[-500:]}{done.stderr[-500:]}")
    return float(found[1])


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def serving() -> Iterator[Server]:
    """Run nginx for the block; all that it writes lies in memory."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if nginx is None:
        raise BenchError("the server is nginx (Debian: nginx-light)")
    port, fault_port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="heifyd-bench-", dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        root = Path(directory)
        config = root / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",  # else its workers could not write here
                workers=len(os.sched_getaffinity(0)),
                root=root,
                port=port,
                fault_port=fault_port,
                answer=answer(f"http://127.0.0.1:{port}", "$request_id"),
            ),
            "ascii",
        )
        with (root / "out").open("wb") as out, Accounted([nginx, "-c", os.fspath(config)], env={}, out=out) as process:
            await_that(
                lambda: process.is_over or ((root / "answers").exists() and (root / "nginx.pid").exists()),
                "nginx's start",
            )
            if process.is_over:
                raise BenchError(f"nginx: {(root / 'out').read_text('utf-8', 'replace')}")
            yield Server(root, process, port, fault_port)
