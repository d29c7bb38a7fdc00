"""Services of the operating system: atomic files and the memory allocator."""
