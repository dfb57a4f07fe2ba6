"""What `make demo` reads and ends with: law.py makes its text, __main__.py shows its runs."""
