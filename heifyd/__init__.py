"""heifyd: every finished recording of a call recorder in Heify, exactly once."""

__version__ = "0.1.0"
