"""The programs that open dumps, and the dumps to open."""
