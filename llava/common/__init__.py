"""What every room uses and no room owns: files, images, addresses, flags and messages, from and to the outside."""
