"""What others may know of a running heifyd: health, metrics and a status page. Imported only where it is asked for."""
