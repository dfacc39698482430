"""A local Heify to rehearse against: its API and its storage behind one port, with faults on demand."""

from heifyd.sandbox.counters import Counters
from heifyd.sandbox.faults import Fault, FaultSpecError, PendingFault, parse_fault
from heifyd.sandbox.limits import RateLimit
from heifyd.sandbox.options import API_KEY, CONFIGURATION_ID, EVALUATOR_ID, PARTICIPANT_ID, Edition
from heifyd.sandbox.server import Sandbox, SandboxError, serve
from heifyd.sandbox.store import Transcription

__all__ = [
    "API_KEY",
    "CONFIGURATION_ID",
    "EVALUATOR_ID",
    "PARTICIPANT_ID",
    "Counters",
    "Edition",
    "Fault",
    "FaultSpecError",
    "PendingFault",
    "RateLimit",
    "Sandbox",
    "SandboxError",
    "Transcription",
    "parse_fault",
    "serve",
]
