"""Specs, datasets, versions with their levels, raw files, blocks and checks; what publishing demands."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from em_pipeline.domain.errors import InputRefused

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A version is published by an update of its row, after its checks are in. From then on it stays as it is.
GUARD_VERSION = """
CREATE FUNCTION guard_version() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.published_at IS NOT NULL THEN
            RAISE EXCEPTION 'version % of % cannot be published before its checks are in',
                NEW.version, NEW.dataset_id USING ERRCODE = 'check_violation';
        END IF;
    ELSIF OLD.published_at IS NOT NULL THEN
        IF NEW IS DISTINCT FROM OLD THEN
            RAISE EXCEPTION 'version % of % is published and does not change', OLD.version, OLD.dataset_id
                USING ERRCODE = 'restrict_violation';
        END IF;
    ELSIF NEW.published_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM validation_results
        WHERE dataset_id = NEW.dataset_id AND version = NEW.version AND severity = 'blocking'
        HAVING count(*) > 0 AND bool_and(passed)
    ) THEN
        RAISE EXCEPTION 'version % of % did not pass its checks', NEW.version, NEW.dataset_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""

GUARD_POINTER = """
CREATE FUNCTION guard_pointer() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.published_version IS NOT NULL AND NOT EXISTS (
        SELECT FROM versions
        WHERE dataset_id = NEW.dataset_id AND version = NEW.published_version AND published_at IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'version % of % is not published', NEW.published_version, NEW.dataset_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$
"""

# Rows that go with their deleted version find no version any more, and may go. The lock makes a writer
# wait for a publisher at work, and then see what it published.
GUARD_PART = """
CREATE FUNCTION guard_part() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    touched record;
BEGIN
    FOR touched IN
        SELECT v.dataset_id, v.version, v.published_at FROM versions v
        WHERE (v.dataset_id, v.version) IN (SELECT c.dataset_id, c.version FROM changed c)
        FOR SHARE OF v
    LOOP
        IF touched.published_at IS NOT NULL THEN
            RAISE EXCEPTION 'version % of % is published: its % do not change',
                touched.version, touched.dataset_id, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
        END IF;
    END LOOP;
    RETURN NULL;
END $$
"""

PARTS = ("levels", "raw_files", "blocks", "validation_results")
# An update is looked at twice, since it may move a row from one version to another.
CHANGES = (
    ("insert", "INSERT", "NEW"),
    ("update_from", "UPDATE", "OLD"),
    ("update_to", "UPDATE", "NEW"),
    ("delete", "DELETE", "OLD"),
)


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create_tables()
    _create_guards()


def downgrade() -> None:
    raise InputRefused(
        "Go below the catalogue's first schema revision",
        "nothing would be left of the catalogue",
        "Drop the database instead",
    )


def _create_guards() -> None:
    for function in (GUARD_VERSION, GUARD_POINTER, GUARD_PART):
        op.execute(function)
    op.execute(
        "CREATE TRIGGER guard_version BEFORE INSERT OR UPDATE ON versions "
        "FOR EACH ROW EXECUTE FUNCTION guard_version()"
    )
    op.execute(
        "CREATE TRIGGER guard_pointer BEFORE INSERT OR UPDATE ON datasets "
        "FOR EACH ROW EXECUTE FUNCTION guard_pointer()"
    )
    for table in PARTS:
        for name, event, rows in CHANGES:
            op.execute(
                f"CREATE TRIGGER guard_{name} AFTER {event} ON {table} "
                f"REFERENCING {rows} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION guard_part()"
            )


def _create_tables() -> None:
    op.create_table(
        "datasets",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "pending",
                "processing",
                "saving-data",
                "complete",
                "failed",
                "cancelled",
                name="dataset_status",
            ),
            nullable=False,
        ),
        sa.Column("progress", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("message", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("published_version", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status <> 'complete' OR published_version IS NOT NULL",
            name=op.f("ck_datasets_complete_is_published"),
        ),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name=op.f("ck_datasets_progress_is_a_share")),
        sa.PrimaryKeyConstraint("dataset_id", name=op.f("pk_datasets")),
    )
    op.create_index(op.f("ix_datasets_source"), "datasets", ["source"], unique=False)
    op.create_index(op.f("ix_datasets_status"), "datasets", ["status"], unique=False)
    op.create_table(
        "specs",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("spec", JSONB(), nullable=False),
        sa.Column("origin", sa.Enum("curated", "run-time", name="spec_origin"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("dataset_id", name=op.f("pk_specs")),
    )
    op.create_index(op.f("ix_specs_source"), "specs", ["source"], unique=False)
    op.create_table(
        "versions",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("spec", JSONB(), nullable=False),
        sa.Column("record", JSONB(), nullable=False),
        sa.Column("statistics", JSONB(), nullable=False),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("shape_z", sa.Integer(), nullable=False),
        sa.Column("shape_y", sa.Integer(), nullable=False),
        sa.Column("shape_x", sa.Integer(), nullable=False),
        sa.Column("voxel_size_z", sa.Double(), nullable=False),
        sa.Column("voxel_size_y", sa.Double(), nullable=False),
        sa.Column("voxel_size_x", sa.Double(), nullable=False),
        sa.Column("data_type", sa.Text(), nullable=True),
        sa.Column("organism", sa.Text(), nullable=True),
        sa.Column("tissue", sa.Text(), nullable=True),
        sa.Column("modality", sa.Text(), nullable=True),
        sa.Column("licence", sa.Text(), nullable=True),
        sa.Column("doi", sa.Text(), nullable=True),
        sa.Column("completeness", sa.Double(), nullable=False),
        sa.Column("conflicts", sa.Integer(), nullable=False),
        sa.Column("raw_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("ledger_sha256", sa.Text(), nullable=False),
        sa.Column("volume_key", sa.Text(), nullable=False),
        sa.Column("ledger_key", sa.Text(), nullable=False),
        sa.Column("writer_version", sa.Text(), nullable=False),
        sa.Column("report_passed", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("completeness BETWEEN 0 AND 1", name=op.f("ck_versions_completeness_is_a_share")),
        sa.CheckConstraint(
            "published_at IS NULL OR report_passed", name=op.f("ck_versions_published_has_passed")
        ),
        sa.CheckConstraint(
            "raw_bytes >= 0 AND stored_bytes >= 0", name=op.f("ck_versions_sizes_are_not_negative")
        ),
        sa.CheckConstraint(
            "shape_z > 0 AND shape_y > 0 AND shape_x > 0", name=op.f("ck_versions_shape_is_positive")
        ),
        sa.CheckConstraint(
            "voxel_size_z > 0 AND voxel_size_y > 0 AND voxel_size_x > 0",
            name=op.f("ck_versions_voxel_size_is_positive"),
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.dataset_id"], name=op.f("fk_versions_datasets"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("dataset_id", "version", name=op.f("pk_versions")),
    )
    op.create_index(op.f("ix_versions_data_type"), "versions", ["data_type"], unique=False)
    op.create_index(op.f("ix_versions_doi"), "versions", ["doi"], unique=False)
    op.create_index(op.f("ix_versions_licence"), "versions", ["licence"], unique=False)
    op.create_index(op.f("ix_versions_modality"), "versions", ["modality"], unique=False)
    op.create_index(op.f("ix_versions_organism"), "versions", ["organism"], unique=False)
    op.create_index(op.f("ix_versions_tissue"), "versions", ["tissue"], unique=False)
    op.create_table(
        "blocks",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("z", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("y", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("x", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("nbytes", sa.BigInteger(), nullable=False),
        sa.Column("crc32c", sa.BigInteger(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("data", "fill", "absent", "corrupt", "padded", name="block_state"),
            nullable=False,
        ),
        sa.Column("valid_fraction", sa.Double(), nullable=False),
        sa.Column("min", sa.Double(), nullable=True),
        sa.Column("max", sa.Double(), nullable=True),
        sa.Column("mean", sa.Double(), nullable=True),
        sa.Column("std", sa.Double(), nullable=True),
        sa.Column("p01", sa.Double(), nullable=True),
        sa.Column("p99", sa.Double(), nullable=True),
        sa.CheckConstraint("crc32c BETWEEN 0 AND 4294967295", name=op.f("ck_blocks_crc32c_is_32_bits")),
        sa.CheckConstraint(
            "valid_fraction BETWEEN 0 AND 1", name=op.f("ck_blocks_valid_fraction_is_a_share")
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id", "version"],
            ["versions.dataset_id", "versions.version"],
            name=op.f("fk_blocks_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "version", "z", "y", "x", name=op.f("pk_blocks")),
    )
    op.create_index(
        "ix_blocks_not_data",
        "blocks",
        ["dataset_id", "version", "state"],
        unique=False,
        postgresql_where=sa.text("state <> 'data'"),
    )
    op.create_table(
        "levels",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("shape_z", sa.Integer(), nullable=False),
        sa.Column("shape_y", sa.Integer(), nullable=False),
        sa.Column("shape_x", sa.Integer(), nullable=False),
        sa.Column("chunk_z", sa.Integer(), nullable=False),
        sa.Column("chunk_y", sa.Integer(), nullable=False),
        sa.Column("chunk_x", sa.Integer(), nullable=False),
        sa.Column("shard_z", sa.Integer(), nullable=False),
        sa.Column("shard_y", sa.Integer(), nullable=False),
        sa.Column("shard_x", sa.Integer(), nullable=False),
        sa.Column("voxel_size_z", sa.Double(), nullable=False),
        sa.Column("voxel_size_y", sa.Double(), nullable=False),
        sa.Column("voxel_size_x", sa.Double(), nullable=False),
        sa.Column("translation_z", sa.Double(), nullable=False),
        sa.Column("translation_y", sa.Double(), nullable=False),
        sa.Column("translation_x", sa.Double(), nullable=False),
        sa.Column("chunks", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "shape_z > 0 AND shape_y > 0 AND shape_x > 0", name=op.f("ck_levels_shape_is_positive")
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id", "version"],
            ["versions.dataset_id", "versions.version"],
            name=op.f("fk_levels_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "version", "level", name=op.f("pk_levels")),
    )
    op.create_table(
        "raw_files",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("modified", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id", "version"],
            ["versions.dataset_id", "versions.version"],
            name=op.f("fk_raw_files_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "version", "path", name=op.f("pk_raw_files")),
    )
    op.create_index(op.f("ix_raw_files_sha256"), "raw_files", ["sha256"], unique=False)
    op.create_table(
        "validation_results",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("severity", sa.Enum("blocking", "warning", name="severity"), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("details", JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id", "version"],
            ["versions.dataset_id", "versions.version"],
            name=op.f("fk_validation_results_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "version", "position", name=op.f("pk_validation_results")),
    )
    op.create_foreign_key(
        "fk_datasets_published_version",
        "datasets",
        "versions",
        ["dataset_id", "published_version"],
        ["dataset_id", "version"],
    )
