"""Takes secrets out of text: known ones, and the signatures of upload URLs by their names. Pure."""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_plus, urlsplit

HIDDEN: Final = "[hidden]"
_LEAST_SECRET_CHARS: Final = 4
_SIGNED: Final = r"X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId"
_SIGNS: Final = ("x-amz-", "signature", "awsaccesskeyid")
_SIGNATURE: Final = re.compile(rf"((?:{_SIGNED})(?:=|%3D))[^&\s\"'\\<>]+", re.IGNORECASE)
_PARAMETER: Final = re.compile(rf"(?:{_SIGNED})=(.+)", re.IGNORECASE)


def without(text: str, secrets: Iterable[str]) -> str:
    """Return a text without these secrets (those that are long enough to be some), and without any URL's signature."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET_CHARS:
            text = text.replace(secret, HIDDEN)
    folded = text.casefold()
    if any(sign in folded for sign in _SIGNS):  # next to no text holds any, and to look is quicker than to search
        text = _SIGNATURE.sub(rf"\1{HIDDEN}", text)
    return text


def secrets_of(url: str) -> set[str]:
    """Return what signs a URL: the values in its query that let whoever has them use it, as they stand and decoded."""
    found = [_PARAMETER.fullmatch(parameter) for parameter in urlsplit(url).query.split("&")]
    values = {match[1] for match in found if match}
    return values | {unquote_plus(value) for value in values}
