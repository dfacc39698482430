"""The sandbox's own endpoints, below ``/_sandbox/``: faults are set and cleared, and what has happened is shown."""

import json
import time
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse, Response

from heifyd.sandbox.answers import heify_error
from heifyd.sandbox.counters import Tally
from heifyd.sandbox.faults import FaultSchedule, FaultSpecError, parse_fault
from heifyd.sandbox.store import Store, as_dict

PREFIX = "/_sandbox/"


class Control:
    """Answers whoever runs the rehearsal; asks for no key."""

    def __init__(self, store: Store, schedule: FaultSchedule, tally: Tally) -> None:
        self._store = store
        self._schedule = schedule
        self._tally = tally

    def call(self, method: str, path: str, body: bytes) -> Response:
        """Answer one request to a path below `PREFIX`."""
        match method, path.removeprefix(PREFIX):
            case "GET", "transcriptions":
                return JSONResponse([as_dict(one) for one in self._store.all()])
            case "GET", "counters":
                return JSONResponse(asdict(self._tally.look()))
            case "GET", "faults":
                return self._faults()
            case "POST", "faults":
                return self._set(body)
            case "DELETE", "faults":
                self._schedule.clear()
                return self._faults()
            case _, "transcriptions" | "counters" | "faults":
                return heify_error(405, "Method not allowed")
        return heify_error(404, "The sandbox shows transcriptions, counters and faults")

    def _set(self, body: bytes) -> Response:
        try:
            spec: Any = json.loads(body)["spec"]
            fault = parse_fault(spec)
        except FaultSpecError as error:
            return heify_error(400, str(error))
        except (ValueError, LookupError, TypeError, AttributeError):
            return heify_error(400, 'Write {"spec": "[WHERE] WHAT [xN | for DURATION]"}')
        self._schedule.add(fault, time.monotonic())
        return self._faults()

    def _faults(self) -> Response:
        return JSONResponse({"faults": [asdict(one) for one in self._schedule.pending(time.monotonic())]})
