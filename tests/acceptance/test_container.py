"""heifyd in a container, as the Dockerfile builds it and the README's compose file runs it."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from heifyd import __version__, daemon
from heifyd.config import Config
from heifyd.sandbox import API_KEY, Sandbox
from tests import container
from tests.container import (
    COMPOSE_FILE,
    COMPOSE_TEXT,
    FOR_OTHER_OWNERS,
    GID,
    OTHER_OWNERS_TEXT,
    SERVICE,
    UID,
    Container,
    Image,
    Sidecar,
)
from tests.debian_tree import debian_tree, made_once
from tests.harness import ROOT, eventually, files_below, need_program, need_root, sample, sha256

SOMEBODY_ELSE = 4711
STRANGER = 4712
"""Users that neither the image nor the machine has a name for."""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    need_root()
    for program in ("buildah", "crun", "unshare"):
        need_program(program)
    with debian_tree(tmp_path_factory) as tree:
        make = partial(container.build, tree=tree)
        with made_once(tmp_path_factory, "heifyd-image", make) as place:
            yield container.unpacked(place)


@pytest.fixture
def sidecar(image: Image, tmp_path: Path, sandbox: Sandbox) -> Sidecar:
    return container.lay_out(image, tmp_path, sandbox.url)


@contextmanager
def running(sidecar: Sidecar) -> Iterator[Container]:
    """Run the image's own command until it has started, for the block; it must stop with 0."""
    with sidecar.run() as daemon:
        yield daemon.started()
        assert daemon.end() == 0, daemon.output


def record(folder: Path, name: str, *, owner: int = UID) -> str:
    """Put a recording there as the recorder does, from outside of heifyd's container; return its SHA-256."""
    part = folder / f"{name}.part"
    part.write_bytes(sample(Path(name).suffix, name))
    os.chown(part, owner, GID)
    part.chmod(0o640)
    part.rename(folder / name)
    return sha256(folder / name)


def stored(sandbox: Sandbox) -> list[str | None]:
    return [each.sha256 for each in sandbox.transcriptions() if each.stored]


# The image


def test_the_image_holds_what_heifyd_needs_and_nothing_that_installs_or_builds(image: Image) -> None:
    environment = image.root / "opt" / "heifyd"
    installed = {path.name.partition("-")[0] for path in environment.glob("lib/python*/site-packages/*.dist-info")}
    assert "heifyd" in installed
    assert not installed & {"pip", "setuptools", "wheel", "hatchling", "pytest"}
    assert not {"build", "src", "root/.cache/pip"} & files_below(image.root).keys()
    modules = [path for path in environment.rglob("*.py") if "site-packages" in path.parts]
    compiled = [path for path in modules if any(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))]
    assert len(compiled) == len(modules)


def test_the_image_says_what_it_is_and_how_it_is_run(image: Image) -> None:
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in image.config["Labels"].items()
        if name.startswith("org.opencontainers.image.")
    }
    assert labels.keys() == {"title", "description", "licenses", "version"}
    assert (labels["title"], labels["licenses"], labels["version"]) == ("heifyd", "MIT", __version__)
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["User"] == "10001:10001"
    for command in (image.config["Entrypoint"], image.config["Healthcheck"]["Test"][1:]):
        assert command[0] == "/opt/heifyd/bin/heifyd"  # and no shell, which signals would end at


def test_version_check_and_demo_run_in_the_image(sidecar: Sidecar) -> None:
    with sidecar.run("--version") as version:
        assert version.over_with() == 0
    with sidecar.run("check", "--online") as check:
        assert check.over_with() == 0, check.output
    with sidecar.run("demo") as demo:
        assert demo.over_with() == 0, demo.output
    assert __version__ in version.output
    assert "watched by events" in check.output
    assert "Each ended where it should" in demo.output


# The daemon


@pytest.mark.parametrize(
    "user", ["10001:10001", f"{SOMEBODY_ELSE}:{SOMEBODY_ELSE}", "0:0"], ids=["image's", "any other", "root"]
)
def test_a_file_from_outside_is_uploaded_and_filed_whoever_heifyd_runs_as(
    sidecar: Sidecar, sandbox: Sandbox, user: str
) -> None:
    uid, gid = map(int, user.split(":"))
    os.chown(sidecar.calls, uid, gid)
    os.chown(sidecar.key, uid, gid)
    with running(sidecar.but(user=user)) as daemon:
        (watched,) = daemon.events("folder.watched")
        sent = record(sidecar.calls, "call.wav", owner=uid)
        daemon.await_event("recording.done", file="call.wav")
        writing = [f"open({path!r}, 'w')" for path in ("/x", "/opt/heifyd/x", "/var/lib/x", "/run/secrets/x")]
        said = [daemon.exec("/opt/heifyd/bin/python", "-c", each)[1] for each in writing]
    assert watched["watch"] == "events"
    assert sha256(sidecar.done / "call.wav") == sent
    assert stored(sandbox) == [sent]
    assert (sidecar.root / "ledger" / "ledger.sqlite").stat().st_mode & 0o777 == 0o600
    assert [("Read-only file system" in each, each) for each in said] == [(True, each) for each in said]


def test_without_any_place_to_write_but_the_ledger_s_and_the_folder_the_work_is_done(sidecar: Sidecar) -> None:
    with running(sidecar.but(tmpfs=[])) as daemon:
        record(sidecar.calls, "call.wav")
        daemon.await_event("recording.done", file="call.wav")


def test_the_health_check_fails_while_heifyd_hangs_and_where_it_does_not_run(sidecar: Sidecar) -> None:
    check = sidecar.image.config["Healthcheck"]["Test"][1:]
    site = sidecar.root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("from tests import rehearsal\n\nrehearsal.prepare()\n")
    often = replace(
        sidecar,
        environ={"PYTHONPATH": "/site:/rehearsal", "REHEARSAL_LOOK_S": "0.5"},
        mounts=((site, "/site:ro"), (ROOT / "tests", "/rehearsal/tests:ro")),
    )
    with running(often) as daemon:
        assert daemon.exec(*check) == (0, "alive\n")
        os.kill(daemon.init, signal.SIGSTOP)
        eventually(lambda: daemon.exec(*check)[0] == 1, "ill health")
        assert daemon.exec(*check)[1].startswith("hanging: ")
        os.kill(daemon.init, signal.SIGCONT)
        eventually(lambda: daemon.exec(*check) == (0, "alive\n"), "good health")
    with often.run(*check[1:]) as after:
        assert after.over_with() == 1
    assert after.output.startswith("not running: ")


def test_a_stop_in_the_middle_of_an_upload_keeps_within_the_grace_and_the_next_start_goes_on(
    image: Image, tmp_path: Path, sandbox: Sandbox
) -> None:
    sidecar = container.lay_out(image, tmp_path, sandbox.url, settings="shutdown_grace: 0.5s")
    (sidecar.calls / "call.wav").write_bytes(sample(".wav") * 40)
    os.chown(sidecar.calls / "call.wav", UID, GID)
    sandbox.fail("drip")
    with running(sidecar) as first:
        first.await_event("upload.started")
    sandbox.clear_faults()
    with running(sidecar) as second:
        second.await_event("recording.done", file="call.wav")
    assert stored(sandbox) == [sha256(sidecar.done / "call.wav")]
    assert not second.events("upload.repeated")


def test_a_bad_configuration_ends_it_with_78_and_a_line_that_says_where(sidecar: Sidecar) -> None:
    with sidecar.config.open("a") as config:
        config.write("worker: 2\n")
    with sidecar.run() as daemon:
        assert daemon.over_with() == 78
    (told,) = daemon.events("config.invalid")
    assert (told["file"], told["key"]) == ("/etc/heifyd/config.yaml", "worker")
    assert "did you mean workers?" in told["detail"]
    sidecar.config.chmod(0o600)
    with sidecar.run() as unread:
        assert unread.over_with() == 78
    (told,) = unread.events("config.invalid")
    assert told["detail"].startswith("cannot be read (Permission denied); ")


def test_a_volume_that_heifyd_may_not_write_to_is_named(sidecar: Sidecar) -> None:
    (sidecar.root / "ledger").chmod(0o700)
    with replace(sidecar, environ={"HOME": "/"}).run() as daemon:  # as Docker sets it for a user without a name
        assert daemon.over_with() == 78, daemon.output
    (told,) = daemon.events("ledger.unusable")
    assert told["detail"].startswith("/var/lib/heifyd/ledger.sqlite: the ledger cannot be used (Permission denied)")


# The key


def test_the_key_comes_from_its_secret_and_is_nowhere_else(sidecar: Sidecar, sandbox: Sandbox) -> None:
    record(sidecar.calls, "call.wav")
    with running(sidecar) as daemon:
        daemon.await_event("recording.done")
        seen = [Path(f"/proc/{daemon.init}/{what}").read_bytes() for what in ("environ", "cmdline")]
    assert sandbox.transcriptions()
    written = [path.read_bytes() for path in files_below(sidecar.root / "ledger").values()]
    assert not [each for each in (*seen, *written) if API_KEY.encode() in each]


def test_a_secret_that_all_may_read_is_refused_unless_the_configuration_says_otherwise(sidecar: Sidecar) -> None:
    sidecar.key.chmod(0o444)
    with sidecar.run() as refused:
        assert refused.over_with() == 78
    (told,) = refused.events("config.invalid")
    assert told["file"] == "/run/secrets/heify-api-key"
    assert "api.allow_readable_key: true" in told["detail"]

    config = sidecar.config.read_text()
    sidecar.config.write_text(config.replace("api:\n", "api:\n  allow_readable_key: true\n", 1))
    with running(sidecar):
        pass


# Who still writes


@contextmanager
def held_open(path: Path, *, owner: int) -> Iterator[None]:
    """Have a recording open for writing, in this process: outside of the container and another user's than heifyd's."""
    with path.open("wb") as recorder:
        recorder.write(sample(path.suffix))
        recorder.flush()
        os.chown(path, owner, GID)
        path.chmod(0o640)
        yield
        recorder.write(b"the end")


def give_every_chance(daemon: Container, folder: Path) -> None:
    """Let recordings pass that were begun later, before and after a scan."""
    for name in ("other.wav", "another.wav"):
        record(folder, name)
        daemon.await_event("recording.done", file=name)
        daemon.send(signal.SIGUSR1)


def checks(daemon: Container) -> set[str]:
    return {each["check"] for each in daemon.events("folder.writer_check")}


def assert_waits_for_the_writer(sidecar: Sidecar, sandbox: Sandbox, *, owner: int) -> None:
    call = sidecar.calls / "call.mp3"
    with running(sidecar) as daemon:
        with held_open(call, owner=owner):
            give_every_chance(daemon, sidecar.calls)
            assert not [each for each in daemon.events() if each.get("file") == "call.mp3"]
        whole = sha256(call)
        daemon.await_event("recording.done", file="call.mp3")
    assert checks(daemon) == {"lease"}
    assert whole in stored(sandbox)


def test_as_the_recordings_owner_heifyd_sees_every_writer_and_takes_no_capability(
    sidecar: Sidecar, sandbox: Sandbox
) -> None:
    assert_waits_for_the_writer(sidecar, sandbox, owner=UID)


def test_where_recordings_have_several_owners_one_capability_of_root_s_is_enough(
    sidecar: Sidecar, sandbox: Sandbox
) -> None:
    assert_waits_for_the_writer(sidecar.but(**FOR_OTHER_OWNERS), sandbox, owner=STRANGER)


def test_podman_s_way_with_capabilities_leaves_the_user_as_it_is(sidecar: Sidecar, sandbox: Sandbox) -> None:
    assert_waits_for_the_writer(replace(sidecar.but(cap_add=["LEASE"]), ambient=True), sandbox, owner=STRANGER)


@pytest.mark.parametrize("added", [[], ["LEASE"]], ids=["none", "of Docker's"])
def test_another_user_than_the_owner_has_only_the_quiet_time_with_or_without_docker_s_capability(
    sidecar: Sidecar, added: list[str]
) -> None:
    with running(sidecar.but(cap_add=added)) as daemon:
        with held_open(sidecar.calls / "call.mp3", owner=STRANGER):
            daemon.await_event("recording.done", file="call.mp3")
        assert checks(daemon) == {"quiet"}


# The README


def test_the_compose_file_asks_for_no_more_than_heifyd_needs_and_gives_each_reason() -> None:
    reasons = re.findall(r"^ +(\w+):.* # \w", COMPOSE_TEXT + OTHER_OWNERS_TEXT, re.MULTILINE)
    assert {"user", "read_only", "cap_drop", "cap_add", "tmpfs", "stop_grace_period"} <= {*reasons}
    assert SERVICE["read_only"] is True
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "cap_add" not in SERVICE
    assert SERVICE["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "init", "pid", "network_mode", "ports"} & SERVICE.keys()
    assert SERVICE["restart"] == "unless-stopped"
    assert SERVICE["secrets"] == [*COMPOSE_FILE["secrets"]]
    assert {volume.split(":")[0] for volume in SERVICE["volumes"]} - {"./config.yaml"} == COMPOSE_FILE["volumes"].keys()
    assert COMPOSE_FILE["services"]["recorder"]["volumes"][0] in SERVICE["volumes"]
    assert {"max-size", "max-file"} <= SERVICE["logging"]["options"].keys()
    assert FOR_OTHER_OWNERS.keys() == {"user", "cap_add"}
    assert FOR_OTHER_OWNERS["cap_add"] == ["LEASE"]


def test_docker_waits_longer_for_a_stop_than_heifyd_takes() -> None:
    grace_s = float(re.fullmatch(r"(\d+)s", SERVICE["stop_grace_period"])[1])  # type: ignore[index]
    assert grace_s > Config.model_fields["shutdown_grace"].default + daemon._CUT_OFF_S


def test_compose_itself_takes_the_file(tmp_path: Path) -> None:
    compose = need_program("docker-compose")
    (tmp_path / "compose.yaml").write_text(COMPOSE_TEXT)
    ran = subprocess.run(
        [compose, "--file", tmp_path / "compose.yaml", "config", "--quiet"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
