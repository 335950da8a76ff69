"""Label images of a version, byte ranges among raw files, and how much of a volume its source holds."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from em_pipeline.domain.errors import InputRefused

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# An update is looked at twice, since it may move a row from one version to another.
CHANGES = (
    ("insert", "INSERT", "NEW"),
    ("update_from", "UPDATE", "OLD"),
    ("update_to", "UPDATE", "NEW"),
    ("delete", "DELETE", "OLD"),
)


def upgrade() -> None:
    op.add_column("raw_files", sa.Column("offset", sa.BigInteger(), nullable=True))
    # What was published before was whole: an absent chunk could not be published.
    op.add_column("versions", sa.Column("coverage", sa.Double(), server_default=sa.text("1"), nullable=False))
    op.create_check_constraint(
        op.f("ck_versions_coverage_is_a_share"), "versions", "coverage BETWEEN 0 AND 1"
    )
    op.create_table(
        "label_images",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("data_type", sa.Text(), nullable=False),
        sa.Column("levels", JSONB(), nullable=False),
        sa.Column("coverage", sa.Double(), nullable=False),
        sa.Column("ledger_sha256", sa.Text(), nullable=False),
        sa.Column("volume_key", sa.Text(), nullable=False),
        sa.Column("ledger_key", sa.Text(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("coverage BETWEEN 0 AND 1", name=op.f("ck_label_images_coverage_is_a_share")),
        sa.CheckConstraint("stored_bytes >= 0", name=op.f("ck_label_images_size_is_not_negative")),
        sa.ForeignKeyConstraint(
            ["dataset_id", "version"],
            ["versions.dataset_id", "versions.version"],
            name=op.f("fk_label_images_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "version", "folder", name=op.f("pk_label_images")),
    )
    for name, event, rows in CHANGES:
        op.execute(
            f"CREATE TRIGGER guard_{name} AFTER {event} ON label_images "
            f"REFERENCING {rows} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION guard_part()"
        )


def downgrade() -> None:
    raise InputRefused(
        "Go below the catalogue's schema revision 0002",
        "what is known of label images and byte ranges would be lost",
        "Restore a backup made before the upgrade",
    )
