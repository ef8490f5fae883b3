"""What is generated from the schema: the JSON schema for editors and docs/federation.md.

Here: output of `python -m schemas.docs.json_schema`.
Not here: text that is written by hand (docs/).
"""
