"""What a failure means: whose it is, what to do about it, and when to try again. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from heifyd.errors import HeifydError


class Owner(StrEnum):
    """Whose fault it is; that decides what happens to the file (see `Fault`)."""

    FILE = "file"
    MAPPING = "mapping"
    ACCOUNT = "account"
    SERVICE = "service"
    FOLDER = "folder"
    LEDGER = "ledger"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure, understood.

    FILE: the file goes to `failed/`. MAPPING: its folder holds. ACCOUNT: everything holds. SERVICE (network included):
    the file is tried again later, and everything holds when it goes on. FOLDER: the folder, or where its files go, is
    missing or full; it holds. LEDGER: nothing can be written down, so everything holds. `reason` is a stable word for
    the log, `detail` what was seen, `advice` what a person can do. `retry_after_s` is the wait the server asked for.
    """

    owner: Owner
    reason: str
    detail: str
    advice: str
    retry_after_s: float | None = None


class FaultError(HeifydError):
    """An error that carries its `fault`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.detail}; {fault.advice}")
        self.fault = fault


_WAIT: Final = "heifyd tries again by itself"
_KEY: Final = "check the API key (api.key_file or HEIFY_API_KEY) in Heify's dashboard"
_RETRY: Final = "mend or replace it, then bring it back with `heifyd retry`"


def of_file(reason: str, detail: str) -> Fault:
    """Make the fault of a file that was found out before a byte was sent."""
    return Fault(Owner.FILE, reason, detail, _RETRY)


def of_network(reason: str, detail: str) -> Fault:
    """Make the fault of having no usable answer: DNS, connection, TLS, timeout, or an answer that is not Heify's."""
    return Fault(Owner.SERVICE, reason, detail, _WAIT)


def of_mapping(reason: str, detail: str) -> Fault:
    """Make the fault of a configuration, evaluator or participant that does not work."""
    return Fault(Owner.MAPPING, reason, detail, "correct the folder's ids in the configuration, then reload heifyd")


def of_folder(reason: str, detail: str) -> Fault:
    """Make the fault of a folder, or a directory its files go to, that cannot be used now."""
    return Fault(Owner.FOLDER, reason, detail, f"see to the directory, its permissions and its disk; {_WAIT}")


def of_silence(detail: str) -> Fault:
    """Make the fault of a folder whose file system does not answer."""
    advice = f"see to the share it is on, or to the server of that; {_WAIT}"
    return Fault(Owner.FOLDER, "folder_unresponsive", detail, advice)


def of_ledger(detail: str) -> Fault:
    """Make the fault of a ledger that cannot be written at present."""
    return Fault(Owner.LEDGER, "ledger_unwritable", detail, f"make room on its disk, or see to it; {_WAIT}")


def of_key(detail: str) -> Fault:
    """Make the fault of an API key that cannot be read."""
    return Fault(Owner.ACCOUNT, "key_unreadable", detail, _KEY)


def of_api(status: int, message: str, retry_after_s: float | None = None) -> Fault:
    """Judge an error answer of the API by its HTTP status and Heify's message (Heify's page "Errors")."""
    said = message.lower()
    detail = f"Heify answered {status}: {message}" if message else f"Heify answered {status}"
    if status == 402:
        return Fault(Owner.ACCOUNT, "out_of_minutes", detail, "top up the account's transcription minutes")
    if status in (401, 403):
        return Fault(Owner.ACCOUNT, "key_refused", detail, _KEY)
    if status == 429:
        return Fault(Owner.SERVICE, "rate_limited", detail, _WAIT, retry_after_s)
    if status in (400, 404, 422):
        about_ids = any(word in said for word in ("configuration", "evaluator", "participant"))
        if not about_ids and any(word in said for word in ("audio", "format", "file too", "file size", "duration")):
            return Fault(Owner.FILE, "refused_by_heify", detail, _RETRY)
        if any(word in said for word in ("limit", "quota", "maximum")):
            return Fault(
                Owner.ACCOUNT, "account_limit", detail, "free the resource the message names, or ask Heify to raise it"
            )
        return of_mapping("mapping_refused", detail)
    return Fault(Owner.SERVICE, f"http_{status}", detail, _WAIT, retry_after_s)


def of_storage(status: int, code: str, message: str, retry_after_s: float | None = None) -> Fault:
    """Judge an error answer of the storage by its S3 error code (Amazon S3 API reference, "Error responses")."""
    detail = f"the storage answered {status} {code}: {message}".rstrip(": ")
    if code == "EntityTooLarge":
        return Fault(
            Owner.FILE, "too_large", detail, "Heify takes at most 200 MB; split or compress it, then `heifyd retry`"
        )
    if code == "SlowDown" or status == 503:
        return Fault(Owner.SERVICE, "storage_slow_down", detail, _WAIT, retry_after_s)
    return Fault(Owner.SERVICE, f"storage_{code or status}", detail, _WAIT, retry_after_s)


def backoff_s(attempt: int, jitter: float, *, first_s: float = 2.0, most_s: float = 600.0) -> float:
    """Return how many seconds to wait after the `attempt`-th failure (from 1): doubling, capped, and spread.

    `jitter` is a number from 0 to 1 out of a random source; half of the wait hangs on it, so that what failed together
    is not tried together.
    """
    whole_s = min(most_s, first_s * 2.0 ** min(attempt - 1, 32))
    return whole_s * (0.5 + 0.5 * jitter)
