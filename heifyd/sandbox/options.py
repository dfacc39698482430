"""How one sandbox behaves: its account, its edition of Heify, and what the documentation leaves open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from heifyd.sandbox.limits import RateLimit

CONFIGURATION_ID: Final = "a1b2c3d4-e5f6-7890-1234-567890abcdef"
CONFIGURATION_TAG: Final = "Support calls"
EVALUATOR_ID: Final = "2abb5563-dd64-47bb-bb17-94252e168b06"
EVALUATOR_TAG: Final = "Quality score"
PARTICIPANT_ID: Final = "5d0f4c1e-8b1a-4e57-9d63-0c2f7a6e9b14"
PARTICIPANT_TAG: Final = "Sales desk"
API_KEY: Final = "sandbox-key"

Edition = Literal["current", "2023", "v2"]
"""What an upload URL signs: ``current`` the ids, ``2023`` the configuration and the name, both by signature version 4;
``v2`` the ids by signature version 2."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a sandbox behaves; `heifyd.sandbox.Sandbox` says what each is for."""

    api_key: str
    configurations: Mapping[str, str]
    evaluators: Mapping[str, str]
    participants: Mapping[str, str]
    accept_any_id: bool
    edition: Edition
    url_lifetime_s: int
    rate_limit: RateLimit | None
    retry_after_s: int | None
    unstored_status: str | None
    processing_s: float
    latency_s: float
    max_bytes: int
    body_timeout_s: float
