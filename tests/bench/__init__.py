"""What heifyd costs, beside a plain shell script that does the same work: `python -m tests.bench`."""
