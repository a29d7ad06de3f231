"""Load a YAML file as a checked profile, and write its schema and reference.

Read `loading.py` first (what others call). It caches validated profiles (`memo.py`) and otherwise calls
`reading.py`: find the file (`files.py`), parse YAML with places (`yaml_tree.py`), merge layers and `--set`
(`layers.py`), choose the typed model (`profile_model.py`), validate (`faults.py`). `declarations.py`
describes settings in words for error messages, `reference.py` (schema and reference page) and `showing.py`
(`kdpipe show`).
"""
