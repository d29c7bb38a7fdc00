"""One machine as a service: jobs that are never lost, and the wire formats that clients speak."""
