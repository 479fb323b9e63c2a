"""The rows of the table in docs/reliability.md as programs: see tools/deaths_table.py."""
