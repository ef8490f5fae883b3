"""Files generated from the schema: the JSON schema for editors and docs/federation.md.

Here: generators of the output of `python -m schemas.docs.json_schema`.
Not here: manually written text (docs/).
"""
