"""A guest's Linux as a program of drgn; needs the extra ``sevkvm[drgn]``. Nothing else imports drgn."""
