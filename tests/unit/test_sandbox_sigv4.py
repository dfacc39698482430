"""The sandbox's signatures, held against botocore's in both directions."""

import calendar
import time
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.auth  # type: ignore[import-untyped]
import pytest
from botocore.auth import HmacV1QueryAuth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.credentials import Credentials as BotoCredentials  # type: ignore[import-untyped]
from botocore.session import Session  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from heifyd.sandbox import sigv2, sigv4
from heifyd.sandbox.sigv4 import Credentials, Refusal

OURS = Credentials("SANDBOX", "not a secret", "eu-central-1")
THEIRS = BotoCredentials(OURS.access_key, OURS.secret)
ORIGIN = "http://127.0.0.1:8123"
PATH = "/upload/client/transcription"
META = {"x-amz-meta-configuration_id": "a1b2c3d4", "x-amz-meta-evaluator_id": "2abb5563"}

paths = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s not in {".", ".."}))
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)) | st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"])
)
headers = st.dictionaries(
    st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True).map("x-amz-meta-".__add__), values, max_size=4
)


def on_the_wire(host: str, sent: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in sent.items())]


def checked(
    url: str,
    sent: dict[str, str],
    *,
    method: str = "PUT",
    credentials: Credentials = OURS,
    later_s: float = 0.0,
    version: Any = sigv4,
) -> Refusal | None:
    parts = urlsplit(url)
    refusal: Refusal | None = version.check(
        method,
        parts.path.encode(),
        parts.query.encode(),
        on_the_wire(parts.netloc, sent),
        credentials,
        now_s=time.time() + later_s,
    )
    return refusal


def code(refusal: Refusal | None) -> str | None:
    return None if refusal is None else refusal.code


def signed_by_botocore(url: str, sent: dict[str, str], method: str = "PUT", expires: int = 300) -> str:
    request = AWSRequest(method=method, url=url, headers=sent)
    S3SigV4QueryAuth(THEIRS, "s3", OURS.region, expires=expires).add_auth(request)
    return str(request.url)


@given(parts=paths, sent=headers, expires=st.integers(1, 604_800))
def test_what_botocore_signs_is_accepted(parts: list[str], sent: dict[str, str], expires: int) -> None:
    url = ORIGIN + quote("/" + "/".join(parts), safe="/~")

    assert checked(signed_by_botocore(url, sent, expires=expires), sent) is None


@given(parts=paths, sent=headers, expires=st.integers(1, 604_800))
def test_botocore_computes_the_same_url_as_the_sandbox(parts: list[str], sent: dict[str, str], expires: int) -> None:
    path = "/" + "/".join(parts)
    at_s = calendar.timegm((2025, 3, 1, 12, 30, 15))
    request = AWSRequest(method="PUT", url=ORIGIN + quote(path, safe="/~"), headers=sent)
    auth = S3SigV4QueryAuth(THEIRS, "s3", OURS.region, expires=expires)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: _moment(at_s))
        auth.add_auth(request)

    assert sigv4.presign_put(ORIGIN, path, sent, OURS, at_s=at_s, expires_s=expires) == request.url


def _moment(at_s: float) -> Any:
    from datetime import UTC, datetime  # noqa: PLC0415

    return datetime.fromtimestamp(at_s, UTC)


def test_a_url_of_botocores_s3_client_is_accepted() -> None:
    client = Session().create_client(
        "s3",
        region_name=OURS.region,
        aws_access_key_id=OURS.access_key,
        aws_secret_access_key=OURS.secret,
        endpoint_url=ORIGIN,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    params = {"Bucket": "upload", "Key": "a b/ü+~(1)!*'.wav", "Metadata": {"configuration_id": "a  b", "name": " x "}}
    url = client.generate_presigned_url("put_object", Params=params, ExpiresIn=60)
    sent = {"x-amz-meta-configuration_id": "a  b", "x-amz-meta-name": " x "}

    assert checked(url, sent) is None
    assert code(checked(url, sent | {"x-amz-meta-name": "y"})) == "SignatureDoesNotMatch"


@given(sent=headers, altered=values, data=st.data())
def test_a_signed_header_of_another_value_is_refused(sent: dict[str, str], altered: str, data: st.DataObject) -> None:
    sent = sent | META
    name = data.draw(st.sampled_from(sorted(sent)))
    url = signed_by_botocore(ORIGIN + PATH, sent)
    same = " ".join(altered.split()) == " ".join(sent[name].split())

    assert (checked(url, sent | {name: altered}) is None) is same


@given(data=st.data())
def test_one_altered_character_anywhere_in_the_url_is_refused(data: st.DataObject) -> None:
    url = signed_by_botocore(ORIGIN + PATH, META)
    at = data.draw(st.integers(len(ORIGIN) + 1, len(url) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/"))
    altered = url[:at] + other + url[at + 1 :]

    accepted = checked(altered, META) is None

    # Percent escapes may be written in either case: "%2F" and "%2f" are the same URL.
    same = altered == url or (url[at].lower() == other.lower() and "%" in url[at - 2 : at])
    assert accepted is same


@pytest.mark.parametrize("missing", sorted(META))
def test_a_missing_signed_header_is_refused(missing: str) -> None:
    url = signed_by_botocore(ORIGIN + PATH, META)

    assert code(checked(url, {name: value for name, value in META.items() if name != missing})) == (
        "SignatureDoesNotMatch"
    )


def test_a_missing_header_is_not_the_same_as_an_empty_one() -> None:
    url = signed_by_botocore(ORIGIN + PATH, {"x-amz-meta-name": ""})

    assert checked(url, {"x-amz-meta-name": ""}) is None
    assert code(checked(url, {})) == "SignatureDoesNotMatch"


def test_an_unsigned_amz_header_is_refused_by_name() -> None:
    url = signed_by_botocore(ORIGIN + PATH, META)

    refusal = checked(url, META | {"x-amz-acl": "public-read"})

    assert refusal is not None
    assert refusal.code == "AccessDenied"
    assert refusal.details == (("HeadersNotSigned", "x-amz-acl"),)


def test_an_unsigned_header_of_another_kind_is_no_matter() -> None:
    assert checked(signed_by_botocore(ORIGIN + PATH, META), META | {"content-type": "audio/wav"}) is None


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "put"])
def test_a_url_for_put_is_good_for_no_other_method(method: str) -> None:
    assert code(checked(signed_by_botocore(ORIGIN + PATH, META), META, method=method)) == "SignatureDoesNotMatch"


def test_another_host_or_secret_is_refused() -> None:
    url = signed_by_botocore(ORIGIN + PATH, META)

    assert code(checked(url.replace("8123", "8124", 1), META)) == "SignatureDoesNotMatch"
    assert code(checked(url, META, credentials=replace(OURS, secret="another"))) == "SignatureDoesNotMatch"
    assert code(checked(url, META, credentials=replace(OURS, access_key="OTHER"))) == "InvalidAccessKeyId"


def test_an_added_or_doubled_parameter_is_refused() -> None:
    url = signed_by_botocore(ORIGIN + PATH, META)

    assert code(checked(f"{url}&partNumber=1", META)) == "SignatureDoesNotMatch"
    assert code(checked(f"{url}&X-Amz-Expires=900", META)) == "AuthorizationQueryParametersError"


@pytest.mark.parametrize("parameter", ["Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"])
def test_each_parameter_is_needed(parameter: str) -> None:
    address, _, query = signed_by_botocore(ORIGIN + PATH, META).partition("?")
    rest = "&".join(pair for pair in query.split("&") if not pair.startswith(f"X-Amz-{parameter}="))

    assert code(checked(f"{address}?{rest}", META)) == "AuthorizationQueryParametersError"


def test_a_url_lives_for_its_expiry_and_no_longer() -> None:
    at_s = 1_760_000_000.0
    url = urlsplit(sigv4.presign_put(ORIGIN, PATH, META, OURS, at_s=at_s, expires_s=300))

    def at(now_s: float) -> Refusal | None:
        wire = on_the_wire(url.netloc, META)
        return sigv4.check("PUT", url.path.encode(), url.query.encode(), wire, OURS, now_s=now_s)

    assert at(at_s) is None
    assert at(at_s + 300) is None
    late = at(at_s + 300.5)
    assert late is not None
    assert (late.code, late.message) == ("AccessDenied", "Request has expired")
    early = at(at_s - 901)
    assert early is not None
    assert (early.code, early.message) == ("AccessDenied", "Request is not yet valid")


def test_an_expiry_made_longer_is_refused_though_it_has_not_passed() -> None:
    url = sigv4.presign_put(ORIGIN, PATH, META, OURS, at_s=time.time() - 400, expires_s=300)

    assert code(checked(url, META)) == "AccessDenied"
    assert code(checked(url.replace("Expires=300", "Expires=900"), META)) == "SignatureDoesNotMatch"


def test_a_url_that_was_encoded_again_in_another_way_is_the_same_url() -> None:
    url = sigv4.presign_put(ORIGIN, PATH, META, OURS, at_s=time.time(), expires_s=300)

    assert "%3B" in url
    assert checked(url.replace("%3B", ";").replace("%2F", "/").replace("/upload", "/%75pload"), META) is None


def test_the_secret_is_not_shown_with_the_credentials() -> None:
    assert OURS.secret not in repr(OURS)


@given(parts=paths, sent=headers)
def test_botocore_computes_the_same_version_2_signature(parts: list[str], sent: dict[str, str]) -> None:
    sent = {name: value.strip() for name, value in sent.items()}
    path = "/" + "/".join(parts)
    url = sigv2.presign_put(ORIGIN, path, sent, OURS, at_s=1_760_000_000.0, expires_s=300)
    parts_of_url = urlsplit(url)
    auth = HmacV1QueryAuth(THEIRS)
    request = AWSRequest(method="PUT", url=ORIGIN + parts_of_url.path, headers=sent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "_get_date", lambda: "1760000300")
        signature = auth.get_signature("PUT", urlsplit(request.url), request.headers)

    assert f"&Signature={quote(signature, safe='')}&" in url


def test_a_version_2_url_is_held_to_its_metadata_and_its_expiry() -> None:
    url = sigv2.presign_put(ORIGIN, PATH, META, OURS, at_s=time.time(), expires_s=300)

    assert checked(url, META | {"content-type": "audio/wav"}, version=sigv2) is None
    assert code(checked(url, {}, version=sigv2)) == "SignatureDoesNotMatch"
    assert code(checked(url, META | {"x-amz-meta-name": "x"}, version=sigv2)) == "SignatureDoesNotMatch"
    assert code(checked(url, META, version=sigv2, method="POST")) == "SignatureDoesNotMatch"
    assert code(checked(url.replace("/client/", "/other/"), META, version=sigv2)) == "SignatureDoesNotMatch"
    assert code(checked(url, META, version=sigv2, later_s=302)) == "AccessDenied"
    assert code(checked(url.replace("Expires=", "Expires=9"), META, version=sigv2)) == "SignatureDoesNotMatch"
    assert code(checked(f"{url}&Expires=1", META, version=sigv2)) == "AccessDenied"
