"""A path as the user types it -> the records of every file that it names, inside archives too.

places.py     path, folder, glob or URL -> files; the parts of a split archive are one file
archives.py   a file -> the members of its zip, tar, gz or zst, in place
encodings.py  bytes -> the encoding that they are in
lines.py      a stream of bytes -> lines of text of bounded length
formats.py    a member -> raw records: a line, a JSON object, a row
tables.py     csv, tsv, parquet and arrow
fields.py     path expressions such as document[].paragraph[].form
layouts.py    a raw record and where its text sits -> a document or a conversation
presets.py    the data choices of conf/data, and which of them fits a raw record
"""
