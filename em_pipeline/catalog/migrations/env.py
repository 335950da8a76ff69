"""Run by alembic: apply migrations over the connection it was handed, in that connection's transaction."""

from alembic import context

from em_pipeline.catalog.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
