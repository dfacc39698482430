"""Whatever comes from outside is taken, or refused in heifyd's own words: no bytes, names or URLs end a thread."""

import gzip
import itertools
import json
import os
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from heifyd import config, faults
from heifyd.answers import api_message, storage_error
from heifyd.config import Config, ConfigError
from heifyd.faults import FaultError, Owner
from heifyd.heify import Heify, Status, TruncatedError
from heifyd.hiding import secrets_of
from heifyd.ledger import Added, Ledger, State
from heifyd.preflight import examine
from heifyd.recording import CONTENT_TYPES, Identity, Ids, Ticket, is_loopback, riff_surplus, sniff
from heifyd.urls import must_be_safe, signed_headers, url_lifetime_s

EXAMPLE: Final = (Path(__file__).parents[2] / "config.example.yaml").read_bytes()
SAMPLES: Final = Path(__file__).parents[2] / "heifyd" / "samples"
CONFIGURATION: Final = "a1b2c3d4-e5f6-7890-1234-567890abcdef"
KEY: Final = "hfy-key-of-the-tests"
BASE: Final = "http://127.0.0.1:1"
URL: Final = f"{BASE}/upload/t-1?X-Amz-Expires=300&X-Amz-SignedHeaders=host&X-Amz-Signature=c0ffee"
TICKET: Final = Ticket("t-1", URL, Ids(CONFIGURATION), "call", 1e12, "boot")

much = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# The configuration: the example, spoiled


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def load_only_refuses(path: Path, content: bytes, environ: dict[str, str]) -> None:
    path.write_bytes(content)
    try:
        found = config.load(path, environ)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 (either outcome is right)
        str(error).encode("utf-8", "surrogateescape")
    else:
        assert isinstance(found, Config)


@much
@given(
    at=st.integers(0, len(EXAMPLE)),
    dropped=st.integers(0, 30),
    put=st.binary(max_size=8)
    | st.sampled_from([b"\n", b"\t", b": ", b"- ", b"#", b"&a ", b"*a", b"{", b"'", b"\0", b"\r"]),
    uncommented=st.booleans(),
)
def test_the_example_with_any_damage_is_a_configuration_or_a_configuration_error(
    scratch: Path,
    at: int,
    dropped: int,
    put: bytes,
    uncommented: bool,  # noqa: FBT001
) -> None:
    spoiled = EXAMPLE[:at] + put + EXAMPLE[at + dropped :]
    load_only_refuses(scratch / "c.yaml", spoiled.replace(b"\n# ", b"\n") if uncommented else spoiled, {})


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "cp037", "cp1252", "shift-jis"]
)
def test_the_example_in_any_encoding_is_a_configuration_or_a_configuration_error(scratch: Path, encoding: str) -> None:
    text = EXAMPLE.decode().replace("…", "...")

    load_only_refuses(scratch / "c.yaml", text.encode(encoding, "replace"), {})


@much
@given(
    environ=st.dictionaries(
        st.sampled_from(["STATE_DIRECTORY", "XDG_STATE_HOME", "HOME", "HEIFY_API_KEY", "HEIFYD_CONFIG"]),
        st.text(max_size=40)
        | st.sampled_from(["", ":", "/a:/b", "relative", "~", "~nobody-of-that-name", "/" + "x" * 5000]),
    )
)
def test_any_environment_makes_a_configuration_or_a_configuration_error(scratch: Path, environ: dict[str, str]) -> None:
    text = f"folders:\n  - path: {scratch}\n    configuration_id: {CONFIGURATION}\n"

    load_only_refuses(scratch / "environ.yaml", text.encode(), environ)


# Error bodies, as structures

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "data"]) | st.text(max_size=5), inner, max_size=4
        )
    ),
    max_leaves=12,
)
"""JSON values; a lone surrogate is what `"\\ud800"` in a JSON text stands for."""


@much
@given(value=json_values, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le"]))
def test_any_json_from_the_api_has_a_message_or_none(value: object, encoding: str) -> None:
    message = api_message(json.dumps(value).encode(encoding))

    assert isinstance(message, str)
    assert len(message) <= 500


xml_texts = st.text(st.characters(categories=["L", "N", "P", "Z"]), max_size=20) | st.sampled_from(
    [
        "&amp;",
        "&lol;",
        "&#0;",
        "&#xD800;",
        "&#xFFFFFFFF;",
        "]]>",
        "<![CDATA[x]]>",
        "<!-- x -->",
        "<?p i?>",
        "<!ENTITY a 'b'>",
    ]
)
xml = st.recursive(
    xml_texts,
    lambda inner: st.builds(
        lambda name, inside: f"<{name}>{''.join(inside)}</{name.split()[0]}>",
        st.sampled_from(["Error", "Code", "Message", "x:Code", 'Code xmlns="u"', "Code a='&lol;'"]),
        st.lists(inner, max_size=4),
    ),
    max_leaves=12,
)
heads = st.sampled_from(
    [
        "",
        '<?xml version="1.0"?>',
        '<?xml version="1.0" encoding="UTF-16"?>',
        '<?xml version="1.1" encoding="ISO-8859-1" standalone="yes"?>',
        '<?xml version="1.0" encoding="hex"?>',
        '<!DOCTYPE e [<!ENTITY lol "ha"><!ENTITY f SYSTEM "file:///etc/passwd">]>',
        '<?xml version="1.0"?><!DOCTYPE e SYSTEM "http://127.0.0.1:1/e.dtd">',
    ]
)


@much
@given(head=heads, body=xml, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"]))
@example(head="", body="<Error><Code>" + "<Code>" * 20_000 + "</Code>" * 20_000 + "</Code></Error>", encoding="utf-8")
@example(head="", body="<Error " + " ".join(f"a{n}=''" for n in range(20_000)) + "/>", encoding="utf-8")
def test_any_xml_from_the_storage_has_a_code_and_a_message_or_none(head: str, body: str, encoding: str) -> None:
    code, message = storage_error(f"{head}{body}".encode(encoding, "xmlcharrefreplace"))

    assert len(code) <= 100
    assert len(message) <= 500
    assert "root:" not in code + message


# Whole answers, through the client


@pytest.fixture(scope="module")
def recording() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(b"RIFF" * 1000)
        file.flush()
        yield file.fileno()


Handler = Callable[[httpx.Request], httpx.Response]


class Wire:
    """A client whose network is a function; one for all tests, as it takes long to make."""

    def __init__(self) -> None:
        self.answer: Handler = lambda _: httpx.Response(200)
        self.requests: list[httpx.Request] = []
        self.heify = Heify(BASE, lambda: KEY, connections=1)
        self.heify.close()
        self.heify._direct = self.heify._proxied = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        return self.answer(request)

    def begin(self, answer: Handler) -> None:
        """Answer so from now on, as a network that has not been used yet."""
        self.answer = answer
        self.requests.clear()

    def calls(self, recording: int, size: int = 4000) -> dict[str, Callable[[], object]]:
        """Return each thing that heifyd asks for."""
        return {
            "request_upload": lambda: self.heify.request_upload(Ids(CONFIGURATION), "call"),
            "put": lambda: self.heify.put(TICKET, recording, size, "audio/wav"),
            "transcription": lambda: self.heify.transcription("t-1"),
            "tags": lambda: self.heify.tags("evaluators"),
        }


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.heify.close()


def must_be_fit_to_keep(text: str) -> None:
    """Fail for a text that SQLite and a file cannot hold: a lone surrogate has no UTF-8."""
    text.encode("utf-8")


def must_be_our_own(what: str, call: Callable[[], object]) -> None:
    """Make a call, which may only return what it promises, or raise a fault that can be kept."""
    try:
        result = call()
    except FaultError as error:
        must_be_fit_to_keep(error.fault.reason + error.fault.detail + error.fault.advice)
        assert error.fault.owner is not Owner.LEDGER  # noqa: PT017 (either outcome is right)
        wait_s = error.fault.retry_after_s
        assert wait_s is None or 0 <= wait_s <= 3600
        return
    kinds: dict[str, type] = {"request_upload": Ticket, "put": type(None), "transcription": Status, "tags": dict}
    assert isinstance(result, kinds[what])
    if isinstance(result, Ticket):
        ids = result.ids
        for text in (result.transcription_id, result.url, result.name, ids.configuration_id, ids.evaluator_id or ""):
            must_be_fit_to_keep(text)
        assert result.good_until_s >= 0


header_values = st.binary(max_size=30).filter(lambda raw: not {0, 10, 13} & set(raw)) | st.sampled_from(
    [
        b"gzip",
        b"deflate",
        b"br",
        b"gzip, deflate, gzip",
        b"text/xml; charset=no-such",
        b"application/json; charset=utf-7",
        b"0",
        b"-1",
        b"9" * 5000,
        b"1e999",
        "²".encode(),
        b"Wed, 21 Oct 2099 07:28:00 GMT",
        b"//[",
        b"http://[::1",
        b"https://evil.example/",
        b"\xff\xfe://x",
        b"/",
        b"?",
        b"https://x:y@:99999/",
        b"javascript:alert(1)",
        b"a=b; Domain=.example; Max-Age=x; Expires=never; Path=\xff",
        b"=; ;=;a",
        b"<>; rel=next",
        b"chunked",
    ]
)
header_names = st.sampled_from(
    [
        *("Content-Encoding", "Content-Type", "Retry-After", "Location", "Set-Cookie", "Set-Cookie2", "Content-Length"),
        *("Transfer-Encoding", "Link", "WWW-Authenticate", "Connection", "Date", "X-Any"),
    ]
)
headers = st.lists(st.tuples(header_names.map(str.encode), header_values), max_size=5)
statuses = st.sampled_from(
    [200, 200, 200, 201, 204, 206, 301, 302, 303, 307, 308, 400, 402, 403, 404, 422, 429, 500, 503]
) | (st.integers(100, 999))
documents = st.fixed_dictionaries(
    {},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "transcription_id": st.text(min_size=1) | st.just("\ud800") | json_values,
                "upload_url": st.sampled_from([URL, "https://[http://x", "https://a]b/", f"{URL}\ud800"]) | st.text(),
                "configuration_id": st.just(CONFIGURATION) | json_values,
                "evaluator_id": st.none() | st.text() | json_values,
                "participant_id": st.none() | st.text(),
                "name": st.none() | st.text() | st.just("\ud800") | json_values,
                "status": st.text() | json_values,
                "duration": st.floats() | st.integers() | json_values,
                "items": st.lists(st.dictionaries(st.sampled_from(["evaluator_id", "tag"]), json_values)) | json_values,
            },
        )
        | json_values,
        "error": st.fixed_dictionaries({"message": st.text() | st.just("Unsupported audio format \ud800")})
        | json_values,
        "message": st.text() | st.just("Configuration \udfff") | json_values,
    },
)
bodies = (
    st.binary(max_size=200)
    | documents.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: json.dumps(value).encode())
    | xml.map(lambda text: text.encode("utf-8", "replace"))
    | st.binary(max_size=50).map(gzip.compress)
    | st.binary(max_size=50).map(zlib.compress)
)

WHATS: Final = ["request_upload", "put", "transcription", "tags"]


@pytest.mark.parametrize("what", WHATS)
@much
@given(status=statuses, head=headers, body=bodies)
@example(status=200, head=[(b"Content-Encoding", b"gzip")], body=b"no gzip")
@example(status=500, head=[], body=b"[" * 100_000)
@example(status=302, head=[(b"Location", b"http://[::1")], body=b"")
@example(status=307, head=[(b"Location", b"\xff\xfe")], body=b"")
@example(status=400, head=[], body=b'{"error": {"message": "Unsupported audio format \\ud800"}}')
@example(status=403, head=[], body=b'{"message": "Forbidden \\udfff"}')
@example(status=429, head=[(b"Retry-After", b"9" * 5000)], body=b"")
def test_any_answer_is_understood_or_a_fault_that_can_be_kept(
    wire: Wire, recording: int, what: str, status: int, head: list[tuple[bytes, bytes]], body: bytes
) -> None:
    wire.begin(lambda _: httpx.Response(status, headers=head, content=body))

    must_be_our_own(what, wire.calls(recording)[what])


@pytest.mark.parametrize("what", ["request_upload", "transcription", "tags"])
@much
@given(document=documents)
@example(document={"data": {"status": "\ud800"}})
@example(document={"data": {"items": [{"evaluator_id": "\ud800", "tag": "\ud800"}]}})
def test_any_document_in_an_answer_of_200_is_understood_or_a_fault_that_can_be_kept(
    wire: Wire, recording: int, what: str, document: dict[str, Any]
) -> None:
    raw = json.dumps(document).encode()

    wire.begin(lambda _: httpx.Response(200, content=raw))

    must_be_our_own(what, wire.calls(recording)[what])


given_tickets = st.fixed_dictionaries(
    {
        "transcription_id": st.text(min_size=1, max_size=100) | st.just("t-\ud800"),
        "upload_url": st.just(URL)
        | st.sampled_from(["https://[http://x", "https://a]b/?X-Amz-Expires=1", f"{URL}\ud800"]),
        "configuration_id": st.just(CONFIGURATION) | st.just("c\ud800") | st.text(min_size=1, max_size=5),
    },
    optional={
        "evaluator_id": st.none() | st.text(max_size=5) | st.just("\udc80"),
        "participant_id": st.none() | st.text(max_size=5),
        "name": st.none() | st.text(max_size=5) | st.just("\udfff"),
    },
)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")) as opened:
        yield opened


numbers = itertools.count(1)


def claimed_of(ledger: Ledger, identity: Identity) -> Any:
    assert ledger.add([identity], 1.0, mount="/") == [Added.QUEUED]
    claim = ledger.claim(identity.folder, 0.0)
    assert claim is not None
    assert claim.identity == identity
    return claim


@much
@given(data=given_tickets)
def test_any_ticket_that_heify_gives_can_be_written_down_and_comes_back_as_it_was(
    wire: Wire, ledger: Ledger, data: dict[str, Any]
) -> None:
    raw = json.dumps({"data": data}).encode()
    wire.begin(lambda _: httpx.Response(200, content=raw))
    try:
        ticket = wire.heify.request_upload(Ids(CONFIGURATION), "call")
    except FaultError:
        return
    claim = claimed_of(ledger, Identity(f"/ticket/{next(numbers)}", "call.wav", 1, 1))

    ledger.uploading(claim, ticket)

    ledger.put_back(claim, 0.0, attempts=1)
    again = ledger.claim(claim.identity.folder, 0.0)
    assert again is not None
    assert again.ticket == ticket


@much
@given(status=st.sampled_from([400, 402, 403, 404, 500]), body=documents.map(lambda value: json.dumps(value).encode()))
@example(status=400, body=b'{"error": {"message": "Unsupported audio format \\ud800"}}')
def test_any_refusal_of_heifys_can_be_written_down(wire: Wire, ledger: Ledger, status: int, body: bytes) -> None:
    wire.begin(lambda _: httpx.Response(status, content=body))
    with pytest.raises(FaultError) as raised:
        wire.heify.request_upload(Ids(CONFIGURATION), "call")
    claim = claimed_of(ledger, Identity(f"/refusal/{next(numbers)}", "call.wav", 1, 1))

    ledger.refused(claim, raised.value.fault)

    ledger.ended(claim, State.FAILED, 2.0, reason=raised.value.fault.reason, detail=raised.value.fault.detail)
    (failed,) = ledger.failed(claim.identity.folder)
    assert failed.detail == raised.value.fault.detail


@pytest.mark.parametrize("depth", [1, 100, 900, 990, 100_000])
@pytest.mark.parametrize("what", WHATS)
def test_an_answer_of_any_depth_is_understood_or_a_fault(wire: Wire, recording: int, what: str, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    bodies = (
        f'{{"data": {nested}}}',
        f'{{"data": {{"items": [{{"evaluator_id": {nested}, "tag": {nested}}}], "status": {nested}}}}}',
        f'{{"error": {{"message": {nested}}}}}',
    )
    for status, body in itertools.product((200, 400), bodies):
        wire.begin(lambda _, status=status, body=body: httpx.Response(status, content=body.encode()))  # type: ignore[misc]
        must_be_our_own(what, wire.calls(recording)[what])


@pytest.mark.parametrize(
    "error",
    [
        *(httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.ConnectError, httpx.RemoteProtocolError),
        *(httpx.LocalProtocolError, httpx.ProxyError, httpx.UnsupportedProtocol, httpx.ReadTimeout, httpx.WriteTimeout),
        *(httpx.ConnectTimeout, httpx.PoolTimeout, httpx.TooManyRedirects, httpx.DecodingError),
    ],
)
@pytest.mark.parametrize("what", WHATS)
def test_whatever_the_network_raises_is_a_fault_of_the_service(
    wire: Wire, recording: int, what: str, error: type[Exception]
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error("it broke")

    wire.begin(fail)
    with pytest.raises(FaultError) as raised:
        wire.calls(recording)[what]()
    assert raised.value.fault.owner is Owner.SERVICE


@pytest.mark.parametrize("cookie", [b"session=1; Path=/", b"session=\x8a; Path=/", b"\xff=1; Path=/"])
@pytest.mark.parametrize("first", ["request_upload", "put"])
def test_a_cookie_that_an_answer_sets_goes_with_no_later_request(
    wire: Wire, recording: int, first: str, cookie: bytes
) -> None:
    """A PUT carries what its URL signs and nothing else, and no cookie may end a thread."""
    wire.begin(lambda _: httpx.Response(500, headers=[(b"Set-Cookie", cookie)]))
    for what in (first, *WHATS):
        must_be_our_own(what, wire.calls(recording)[what])

    assert len(wire.requests) == 1 + len(WHATS)
    assert [request.headers["Cookie"] for request in wire.requests if "Cookie" in request.headers] == []


def test_a_file_that_ends_while_it_is_put_is_told_apart_from_every_other_failure(wire: Wire, recording: int) -> None:
    wire.begin(lambda _: httpx.Response(200))
    with pytest.raises(TruncatedError):
        wire.calls(recording, size=4001)["put"]()


# URLs

hosts = st.sampled_from(
    [
        *(
            "",
            "storage.heify.com",
            "127.0.0.1",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "[::1]",
            "[::1%25lo]",
            "[::1%lo]",
        ),
        *(
            "[::ffff:127.0.0.1]",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "[::]",
        ),
        *(
            "localhost.evil.example",
            "127.0.0.1\t",
            "127.0.0.1%2eevil.example",
            "[v1.a]",
            "[",
            "]",
            "a]b",
            "[::1",
            "::1",
            "a b",
        ),
        *(
            "\uff11\uff12\uff17.0.0.1",
            "\u24dbocalhost",
            "xn--a",
            "a\u2100",
            "bücher.example",
            "%",
            "-",
            "_",
            "." * 3,
            "x" * 300,
            "a\x00b",
            "\ud800",
        ),
        *(
            "[http://127.0.0.1",
            "127.0.0.1@evil.example",
            "evil.example\\@127.0.0.1",
            "127.0.0.1#@evil.example",
            "evil?@127.0.0.1",
        ),
    ]
) | st.text(max_size=8)
urls = (
    st.builds(
        "{}{}{}{}{}{}{}".format,
        st.sampled_from(
            ["https", "http", "HTTPS", "Http", " https", "https\n", "ftp", "file", "", "ws", "https+http", "//"]
        ),
        st.sampled_from(["://", ":", ":/", ":///", "", ":\\\\", ": //"]),
        st.sampled_from(["", "", "", "user@", "user:pw@", "@", ":@", "a@b@"]),
        hosts,
        st.sampled_from(["", "", ":443", ":0", ":99999", ":-1", ":", ":port", ":\uff14\uff14\uff13"]),
        st.sampled_from(["", "/", "/x", "/[", "/%", "/%zz", "/../..", "\\x", "/a\x7fb", "/\ud800", "//evil.example/"]),
        st.sampled_from(
            [
                "",
                "?",
                "?X-Amz-Expires=" + "9" * 5000,
                "?X-Amz-Expires=1&X-Amz-Expires=-2",
                "?X-Amz-SignedHeaders=;;",
                "?X-Amz-SignedHeaders=host%00;%0d%0a",
                "?X-Amz-SignedHeaders=%ff",
                "?[=]",
                "?X-Amz-Signature=%ZZ&Signature=",
                "?" + "a=b&" * 2000,
                "#?X-Amz-Expires=1",
            ]
        ),
    )
    | st.text()
    | st.text(max_size=20).map(lambda text: f"https://{text}")
)


def takes(url: str, base: str) -> bool:
    try:
        must_be_safe(url, base)
    except FaultError as error:
        assert error.fault.owner is Owner.SERVICE  # noqa: PT017 (either outcome is right)
        must_be_fit_to_keep(error.fault.detail)
        return False
    return True


@settings(much, max_examples=800)
@given(url=urls, base=st.sampled_from(["https://api.heify.com", BASE, "http://[::1]:80", "http://localhost"]))
@example(url="https://[http://127.0.0.1/x", base=BASE)
@example(url="https://a]b/x", base=BASE)
def test_a_url_is_refused_or_goes_encrypted_or_to_this_machine_and_all_that_is_read_of_it_can_be_read(
    url: str, base: str
) -> None:
    if not takes(url, base):
        return

    sent_to = httpx.Request("PUT", url).url
    assert sent_to.scheme in ("https", "http")
    assert sent_to.host
    if sent_to.scheme == "http":
        assert base.startswith("http://")
        assert is_loopback(sent_to.host)
        if sent_to.host != "localhost":
            for *_, address in socket.getaddrinfo(sent_to.host, 80, flags=socket.AI_NUMERICHOST):
                assert str(address[0]).startswith("127.") or address[0] == "::1"
    assert sent_to.userinfo == b""
    assert url_lifetime_s(url) >= 0
    assert isinstance(secrets_of(url), set)
    with suppress(FaultError):
        signed_headers(Ticket("t", url, Ids(CONFIGURATION), "call", 1.0, "boot"))


@much
@given(url=urls)
def test_any_url_that_heify_gives_is_a_ticket_that_can_be_used_or_a_fault(wire: Wire, recording: int, url: str) -> None:
    given_url = json.dumps({"data": {"transcription_id": "t", "upload_url": url, "configuration_id": CONFIGURATION}})

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            return httpx.Response(403, content=b"<Error><Code>AccessDenied</Code></Error>")
        return httpx.Response(200, content=given_url.encode())

    wire.begin(answer)
    try:
        ticket = wire.heify.request_upload(Ids(CONFIGURATION), "call")
    except FaultError:
        return
    with pytest.raises(FaultError, match="AccessDenied"):
        wire.heify.put(ticket, recording, 4000, "audio/wav")


# What lies in the folders


@much
@given(head=st.binary(max_size=64), size=st.integers(0, 2**63))
@example(head=b"RIFF\xff\xff\xff\xffWAVE", size=0)
@example(head=b"RIFF", size=4)
@example(head=b"RIFX\0\0\0\1WAVEfmt ", size=9)
def test_what_is_no_riff_wave_promises_nothing_whatever_its_bytes(head: bytes, size: int) -> None:
    surplus = riff_surplus(head, size)

    if not (head[:4] == b"RIFF" and head[8:12] == b"WAVE"):
        assert surplus == 0


@much
@given(said=st.integers(0, 2**32 - 1), size=st.integers(12, 2**40), rest=st.binary(max_size=40))
def test_a_riff_wave_lacks_or_exceeds_what_its_header_says_by_just_so_much(said: int, size: int, rest: bytes) -> None:
    surplus = riff_surplus(b"RIFF" + said.to_bytes(4, "little") + b"WAVE" + rest, size)

    assert surplus in (size - 8 - said, 0)
    assert (surplus == 0) == (size - 8 - said in (0, 1))


magics = st.sampled_from(
    [
        *(
            b"",
            b"RIFF\xff\xff\xff\xffWAVEfmt ",
            b"RF64\xff\xff\xff\xffWAVEds64",
            b"FORM\0\0\0\x04AIFF",
            b"fLaC\0\0\0\x22",
        ),
        *(b"OggS\0\x02", b"ID3\x04\0\0\x7f\x7f\x7f\x7f", b"\xff\xfb\x90\0", b"\xff\xf1\x50\x80", b"\0\0\0\x18ftypmp42"),
        *(
            b"\x1a\x45\xdf\xa3",
            b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
            b"#!AMR\n",
            b"ADIF",
        ),
        b"\0\0\0\x01ftypisom\xff\xff\xff\xff\xff\xff\xff\xff",
    ]
)
extensions = st.sampled_from([*CONTENT_TYPES, *(ending.upper() for ending in CONTENT_TYPES), ".txt", "", "."])


@much
@given(magic=magics, content=st.binary(max_size=400), ending=extensions, size=st.none() | st.integers(0, 2**62))
def test_any_bytes_under_any_extension_are_a_recording_or_the_files_own_fault(
    magic: bytes, content: bytes, ending: str, size: int | None
) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(magic + content)
        file.flush()
        try:
            facts = examine(file.fileno(), f"call{ending}", len(magic + content) if size is None else size)
        except FaultError as error:
            assert error.fault.owner is Owner.FILE  # noqa: PT017 (either outcome is right)
            must_be_fit_to_keep(error.fault.detail)
        else:
            assert facts.content_type in CONTENT_TYPES.values()
            assert facts.duration_s is None or 0 <= facts.duration_s <= 7200


@pytest.mark.parametrize("ending", sorted(CONTENT_TYPES))
@settings(much, max_examples=60)
@given(data=st.data())
def test_a_recording_that_is_cut_off_or_repeated_anywhere_is_one_still_or_the_files_own_fault(
    ending: str, data: st.DataObject
) -> None:
    whole = (SAMPLES / f"call{ending}").read_bytes()
    start = data.draw(st.integers(0, 64))
    end = data.draw(st.integers(0, len(whole)))
    content = whole[start:end] * data.draw(st.integers(1, 3))
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            facts = examine(file.fileno(), f"call{ending}", len(content))
        except FaultError as error:
            assert error.fault.owner is Owner.FILE  # noqa: PT017 (either outcome is right)
        else:
            assert sniff(content[:4096]) is not None
            assert facts.content_type in CONTENT_TYPES.values()


# Names in the ledger

raw_names = st.binary(min_size=1, max_size=255).filter(lambda raw: not {0, ord("/")} & set(raw)).map(os.fsdecode)
int64s = st.integers(-(2**63), 2**63 - 1)


@much
@given(
    folder=raw_names,
    parts=st.lists(raw_names, min_size=1, max_size=4),
    size=st.integers(0, 2**63 - 1),
    mtime_ns=int64s,
    filed_at=raw_names,
    mount=raw_names,
)
def test_any_name_that_a_file_system_allows_comes_back_from_the_ledger_as_it_was(
    ledger: Ledger, folder: str, parts: list[str], size: int, mtime_ns: int, filed_at: str, mount: str
) -> None:
    identity = Identity(f"/{next(numbers)}/{folder}", "/".join(parts), size, mtime_ns)
    assert ledger.unsettled([identity]) == [identity]
    assert ledger.add([identity], 1.0, mount=mount) == [Added.QUEUED]
    assert ledger.unsettled([identity]) == []

    claim = ledger.claim(identity.folder, 0.0)

    assert claim is not None
    assert (claim.identity, claim.mount) == (identity, mount)
    fault = faults.of_file("not_audio", f"no recording: {identity.path!r}")
    ledger.refused(claim, fault)
    ledger.put_back(claim, 0.0, attempts=1)
    again = ledger.claim(identity.folder, 0.0, only_to_file=True)
    assert again is not None
    assert again.refusal == fault
    ledger.ended(again, State.FAILED, 2.0, filed_at=filed_at, reason=fault.reason, detail=fault.detail)
    (failed,) = ledger.failed(identity.folder)
    assert (failed.identity, failed.filed_at) == (identity, filed_at)
    assert identity.folder in ledger.folders()
