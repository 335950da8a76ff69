"""PostgreSQL: what is known, and what is published."""
