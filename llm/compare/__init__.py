"""Runs, sweeps and searches ranked, the best first: in the terminal, as Markdown, and as one HTML page with figures.

command   the command line -> one of the ways to show a ranking
entries   what a user names -> runs, and jobs of a sweep: how each stands and what came out
effects   values -> means with their intervals, and what each setting does to them
differing entries -> the settings in which they differ
ranking   entries -> choices, seeds averaged, ranked
show      a ranking -> what the terminal and Markdown show of it
figures   a ranking -> plotly figures
page      both -> one HTML file
at_end    a sweep that ends -> its ranking and its page
"""
