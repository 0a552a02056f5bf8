"""The machine underneath: processes, devices, threads, provenance."""
