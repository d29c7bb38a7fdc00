"""The command line: arguments become a `Request`, a painter runs it, pictures are written."""
