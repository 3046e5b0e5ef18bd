"""The lowest package, used by all others: files, images, addresses, flags and messages."""
