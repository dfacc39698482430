"""``python -m heifyd`` is the same as ``heifyd``."""

from heifyd.cli import main

main()
