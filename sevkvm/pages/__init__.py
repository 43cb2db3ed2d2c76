"""Which pages of a guest are private, which are shared."""
