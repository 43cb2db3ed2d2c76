"""Guests to practise on."""
