"""Names of models: packaged, downloaded, or added by the user."""
