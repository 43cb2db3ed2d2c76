"""Prove from the host that a guest's memory is encrypted: what the host sees, and what the guest sees."""
