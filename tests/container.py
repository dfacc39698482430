"""heifyd's image, built as the Dockerfile says, and containers of it, set up by the README's compose file.

crun runs them by a specification (opencontainers.org, runtime-spec) that says what Docker would write into it. One
thing is otherwise: they share the machine's network, where the sandbox is.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from heifyd.sandbox import API_KEY, CONFIGURATION_ID
from tests.harness import LIMIT_S, ROOT, LoggingProcess, need_program

COMPOSE_TEXT, OTHER_OWNERS_TEXT = (
    re.findall(rf"^```yaml\n( *{begin}.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)[0]
    for begin in ("services:", 'user: "0:')
)
"""The README's compose file, and what it puts into that where recordings have several owners."""

COMPOSE_FILE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICE: dict[str, Any] = COMPOSE_FILE["services"]["heifyd"]
FOR_OTHER_OWNERS: dict[str, Any] = yaml.safe_load(OTHER_OWNERS_TEXT)

UID, GID = map(int, SERVICE["user"].split(":"))
"""The recorder's."""

_DEFAULT_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
    *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
_MASKED = ("acpi", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_TMPFS = ("nosuid", "nodev", "noexec", "mode=1777")

_serial = itertools.count(1)


# The image


@dataclass(frozen=True)
class Image:
    """An image, unpacked: its root file system, how large heifyd's part of it is, and Docker's configuration of it."""

    root: Path
    config: dict[str, Any]


def build(place: Path, tree: Path) -> None:
    """Build the image on a Debian tree as its base, and lay it out below `place` for `unpacked`."""
    storage = place / "storage"
    # vfs keeps each layer as a directory of its own, wherever this machine's own root comes from.
    buildah = [need_program("buildah"), "--storage-driver=vfs", f"--root={storage}/root", f"--runroot={storage}/run"]
    environ = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def run(*arguments: object) -> str:
        command = [str(each) for each in (*buildah, *arguments)]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        return ran.stdout.strip()

    base = run("from", "scratch")
    run("add", "--quiet", base, tree, "/")
    run("commit", "--quiet", base, "localhost/base")
    run("rm", base)
    # How this machine reaches the package index is its own affair and not the Dockerfile's.
    machine = [path for path in ("/etc/pip.conf", "/etc/ssl/certs") if os.path.exists(path)]
    mounts = [f"--volume={path}:{path}:ro" for path in machine]
    base_and_network = ("--build-arg=BASE=localhost/base", "--network=host")
    run("bud", *base_and_network, "--format=docker", *mounts, "--tag=localhost/heifyd", ROOT)
    (place / "image.json").write_text(run("inspect", "--type=image", "localhost/heifyd"))
    os.rename(run("mount", run("from", "localhost/heifyd")), place / "root")
    shutil.rmtree(storage)


def unpacked(place: Path) -> Image:
    """Return the image that `build` laid out."""
    return Image(place / "root", json.loads((place / "image.json").read_text())["Docker"]["config"])


# A container


class Container(LoggingProcess):
    """A container, from its start to its end; signals go to its first process, as those of `docker kill` do."""

    def __init__(self, bundle: Path) -> None:
        self._crun = _crun(bundle.parent / "crun")
        self._name = bundle.name
        self._bundle = bundle
        super().__init__("run", f"--bundle={bundle}", self._name, program=self._crun)

    def _ask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*self._crun, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)

    @property
    def init(self) -> int:
        """The container's first process, by its number outside."""
        return int(json.loads(self._ask("state", self._name).stdout)["pid"])

    def send(self, number: signal.Signals) -> None:
        self._ask("kill", self._name, str(int(number)))

    def exec(self, *command: str) -> tuple[int, str]:
        """Run a command in the container as `docker exec` does; return its exit code and what it printed."""
        process = json.loads((self._bundle / "config.json").read_text())["process"] | {"args": command}
        (self._bundle / "exec.json").write_text(json.dumps(process))
        ran = self._ask("exec", f"--process={self._bundle / 'exec.json'}", self._name)
        return ran.returncode, ran.stdout + ran.stderr

    def over_with(self) -> int:
        """Wait until it ends by itself and return the exit code."""
        self.wait_for(lambda: self.over, "its end")
        return self.end()

    def __exit__(self, *error: object) -> None:
        self._ask("delete", "--force", self._name)
        super().__exit__(*error)


def _crun(state: Path) -> list[str]:
    """Return the command that crun is run by: crun 1.8 takes no machine that has both versions of control groups."""
    script = 'mount -t cgroup2 none /sys/fs/cgroup && exec "$0" "$@"'
    crun = [need_program("crun"), f"--root={state}", "--cgroup-manager=disabled"]
    return [need_program("unshare"), "--mount", "sh", "-c", script, *crun]


@dataclass(frozen=True)
class Sidecar:
    """heifyd beside a recorder, by the compose file: `service` is its part of that, `ambient` is for Podman's way."""

    image: Image
    root: Path
    service: Mapping[str, Any]
    ambient: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[tuple[Path, str], ...] = ()

    @property
    def calls(self) -> Path:
        return self.root / "recordings"

    @property
    def done(self) -> Path:
        return self.calls / "done"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def key(self) -> Path:
        return self.root / "heify-api-key"

    def but(self, **service: Any) -> "Sidecar":
        """Return one whose service is otherwise in these keys."""
        return replace(self, service={**self.service, **service})

    def run(self, *command: str) -> Container:
        """Start a container that runs this command, the image's own where there is none."""
        bundle = self.root / "containers" / f"heifyd-{os.getpid()}-{next(_serial)}"
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(self._specification(command)))
        return Container(bundle)

    def _specification(self, command: tuple[str, ...]) -> dict[str, Any]:
        image, service = self.image.config, self.service
        uid, gid = map(int, service.get("user", image["User"]).split(":"))
        environ = {**service.get("environment", {}), **self.environ}
        namespaces = ("pid", "ipc", "uts", "mount")
        return {
            "ociVersion": "1.0.0",
            "root": {"path": str(self.image.root), "readonly": service.get("read_only", False)},
            "process": {
                "user": {"uid": uid, "gid": gid},
                "args": [*image["Entrypoint"], *(command or image["Cmd"])],
                "env": [*image["Env"], *(f"{name}={value}" for name, value in environ.items())],
                "cwd": image["WorkingDir"] or "/",
                "capabilities": self._capabilities(uid),
                "noNewPrivileges": "no-new-privileges:true" in service.get("security_opt", ()),
            },
            "mounts": [*self._own_mounts(), *self._mounts()],
            "linux": {
                "namespaces": [{"type": each} for each in namespaces],
                "maskedPaths": [*(f"/proc/{name}" for name in _MASKED), "/sys/firmware"],
                "readonlyPaths": [f"/proc/{name}" for name in _READ_ONLY],
            },
        }

    def _capabilities(self, uid: int) -> dict[str, list[str]]:
        """Return what Docker makes of them: for another user than root they are only what a program might get."""
        dropped, added = (self.service.get(key, ()) for key in ("cap_drop", "cap_add"))
        kept = () if "ALL" in dropped else set(_DEFAULT_CAPABILITIES) - set(dropped)
        names = [f"CAP_{name}" for name in sorted({*kept, *added})]
        if uid == 0:
            return dict.fromkeys(("bounding", "effective", "permitted"), names)
        if self.ambient:
            return dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), names)
        return {"bounding": names}

    def _own_mounts(self) -> list[dict[str, Any]]:
        return [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ]

    def _mounts(self) -> list[dict[str, Any]]:
        """Give those of the service; what it calls `recordings` is `self.root / "recordings"`, and so on."""
        tmpfs = [
            {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": [*_TMPFS]}
            for path in self.service.get("tmpfs", ())
        ]
        bound = [(self.root / volume.split(":")[0], volume.partition(":")[2]) for volume in self.service["volumes"]]
        bound += [(self.root / name, f"/run/secrets/{name}:ro") for name in self.service["secrets"]]
        bound += self.mounts
        for source, _ in bound:
            assert source.exists(), source
        return tmpfs + [
            {
                "destination": target.removesuffix(":ro"),
                "type": "bind",
                "source": str(source.resolve()),
                "options": ["rbind", "ro" if target.endswith(":ro") else "rw"],
            }
            for source, target in bound
        ]


def lay_out(image: Image, root: Path, url: str, *, settings: str = "") -> Sidecar:
    """Make what the compose file mounts, as Docker and who follows the README make it."""
    sidecar = Sidecar(image, root, SERVICE)
    sidecar.calls.mkdir()
    sidecar.calls.chmod(0o770)
    os.chown(sidecar.calls, UID, GID)
    sidecar.key.write_text(API_KEY)
    sidecar.key.chmod(0o440)
    os.chown(sidecar.key, 0, GID)
    folder, state = (
        next(volume.split(":")[1] for volume in SERVICE["volumes"] if volume.startswith(f"{name}:"))
        for name in ("recordings", "ledger")
    )
    assert state in image.config["Volumes"]
    of_image = (image.root / state.removeprefix("/")).stat()  # which a new volume takes after
    ledger = root / "ledger"
    ledger.mkdir()
    ledger.chmod(of_image.st_mode & 0o7777)
    os.chown(ledger, of_image.st_uid, of_image.st_gid)
    sidecar.config.write_text(
        f"""\
api:
  base_url: {url}
  key_file: /run/secrets/{SERVICE["secrets"][0]}
  rate_limit: off
settle_seconds: 0.3
{settings}
folders:
  - path: {folder}
    configuration_id: {CONFIGURATION_ID}
"""
    )
    return sidecar
