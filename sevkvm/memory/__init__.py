"""Guest-physical memory: where its bytes are, who may read them, and how they are decrypted."""
