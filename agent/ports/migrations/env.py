"""Runs revisions on the connection that `ledger_sqlalchemy_file` holds, in its transaction. Only Alembic loads this file."""

from alembic import context

from agent.ports.ledger_schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
