"""Runs, sweeps and searches ranked, the best first: in the terminal, as Markdown, and as one HTML page with figures."""
