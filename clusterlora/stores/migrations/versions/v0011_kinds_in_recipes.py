"""The kind of an adapter is part of its recipe."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    adapters = sa.table("adapters", sa.column("key", sa.Text()), sa.column("spec", sa.Text()))
    for key, text in connection.execute(sa.select(adapters.c.key, adapters.c.spec)).all():
        spec = json.loads(text)
        spec["recipe"]["kind"] = spec.pop("kind", "lora")
        moved = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        connection.execute(sa.update(adapters).where(adapters.c.key == key).values(spec=moved))
