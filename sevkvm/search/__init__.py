"""Search guest memory: patterns over bytes, in the order of their addresses, in constant memory."""
