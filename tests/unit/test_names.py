"""The names that heifyd makes of other names: a recording's label at Heify, and its ready marker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heifyd.names import marker_of
from heifyd.sending import MOST_NAME_CHARS, ascii_name

anything = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"]))


@given(anything)
def test_a_label_is_never_empty_and_always_one_line_of_readable_ascii(name: str) -> None:
    label = ascii_name(name)

    assert 1 <= len(label) <= MOST_NAME_CHARS
    assert label.isascii()
    assert label.isprintable()
    assert label == label.strip()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("call 2026-07-01", "call 2026-07-01"),
        ("Jürgen Müller", "Jurgen Muller"),
        ("Ελένη", "Eleni"),
        ("a\nb\tc", "a b c"),
        ("", "recording"),
        ("\n", "recording"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_label_stays_readable(name: str, label: str) -> None:
    assert ascii_name(name) == label


@pytest.mark.parametrize(
    ("path", "template", "marker"),
    [
        ("call.wav", "{name}.ready", "call.wav.ready"),
        ("call.wav", "{stem}.ok", "call.ok"),
        ("2026/07/call.wav", "{name}.ready", "2026/07/call.wav.ready"),
        ("2026.07/call.wav", ".{stem}.done", "2026.07/.call.done"),
        ("a.b.WAV", "{stem}.xml", "a.b.xml"),
        ("call.wav", None, None),
    ],
)
def test_a_ready_marker_stands_beside_its_recording(path: str, template: str | None, marker: str | None) -> None:
    assert marker_of(path, template) == marker


@pytest.mark.parametrize("name", ["{stem}", "{name}", "a{stem}b{name}", "{", "{}", "{0}"])
def test_a_name_that_looks_like_a_template_is_a_name_like_any_other(name: str) -> None:
    assert marker_of(f"sub/{name}.wav", "{name}.ready") == f"sub/{name}.wav.ready"
    assert marker_of(f"sub/{name}.wav", "{stem}.ready") == f"sub/{name}.ready"


def test_a_marker_is_named_in_the_bytes_of_its_recording(odd_name: str) -> None:
    assert marker_of(f"{odd_name}/{odd_name}", "{name}.ready") == f"{odd_name}/{odd_name}.ready"
