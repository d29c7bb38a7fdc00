"""Our own network parts: the attention processor and the context it reads."""
