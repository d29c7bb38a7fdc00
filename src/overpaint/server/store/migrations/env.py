"""Alembic executes this file for each command; `upgrade` passes the connection and the callback."""

from alembic import context

from overpaint.server.store.tables import schema

given = context.config.attributes
context.configure(
    connection=given["connection"],
    target_metadata=schema,
    on_version_apply=given["on_version_apply"],
)
with context.begin_transaction():
    context.run_migrations()
