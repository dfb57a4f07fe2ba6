"""How long a test waits for what is sure to come: only what hangs takes so long, on however slow a machine."""

PATIENCE = 600.0  # seconds
