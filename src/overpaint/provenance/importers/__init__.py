"""Read the settings that other programs leave in their pictures, as fields of `Request`.

Each module has one function for one program. It takes the text that the program wrote and returns
`ImportedSettings`, or None if another program wrote the text. A setting without a counterpart, or
with a value that `Request` refuses, becomes a note, so that nothing is dropped silently.
"""
