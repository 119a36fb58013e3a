//! The statements, made once for the configured table. Its name was checked to be a plain one.

use super::Settings;

/// Of the payloads of a page, as they are kept, which is often compressed.
const PAGE_BYTES: u64 = 4 << 20;

/// A position after all others.
pub(super) const END: i64 = i64::MAX;

/// Columns of a row, in the order that [`super::read_row`] takes them. Casts, so that tables with
/// other text types work as well.
const COLUMNS: &str = "position, id::text, aggregatetype::text, aggregateid::text, type::text, \
    payload::text, (extract(epoch FROM created_at) * 1000000)::bigint";

/// Rows that are looked at by one clean-up.
pub(super) const CLEAN_UP_ROWS: u64 = 5000;

/// After it everything that was committed before is on the server's disk, whatever the session or the
/// server says of `synchronous_commit`. A message, since a transaction that writes nothing is not waited for.
pub(super) const FLUSH: &str = "BEGIN; SET LOCAL synchronous_commit = on; \
    SELECT pg_logical_emit_message(true, 'hutong', ''); COMMIT";

#[derive(Debug)]
pub(super) struct Statements {
    /// Parameters: group's snapshot, after which position, limit.
    pub page_of_all: String,
    /// Parameters: base's xmax, group's snapshot. The first position of transactions after the base.
    pub first: String,
    /// Parameters: base's xmax, transactions that ran at the base, group's snapshot, after which
    /// position, limit, first position of transactions after the base, rows to look at.
    /// The first columns are how far it looked and how many it found; then a row, or NULLs for none.
    pub page: String,
    /// Parameters: acknowledged snapshot, age in seconds.
    pub clean_up: String,
    pub sample: String,
    /// One row: server, next transaction, last value and cache size of the sequence, rows of later
    /// transactions.
    pub server: String,
}

impl Statements {
    pub fn new(table: &str) -> Statements {
        // Of the rows of `page` as many as are not too large together, and one at least. What a value takes
        // in the table is known without reading it.
        let rows = format!(
            "SELECT (SELECT position FROM reach), (SELECT count(*) FROM page), found.* \
             FROM (VALUES (1)) AS one LEFT JOIN ( \
               SELECT {COLUMNS} FROM ( \
                 SELECT t.*, row_number() OVER in_order AS nth, \
                   sum(pg_column_size(t.payload)) OVER in_order AS bytes \
                 FROM {table} t JOIN page USING (position) \
                 WINDOW in_order AS (ORDER BY t.position)) sized \
               WHERE nth = 1 OR bytes <= {PAGE_BYTES}) found ON true \
             ORDER BY 3"
        );
        Statements {
            page_of_all: format!(
                "WITH page AS MATERIALIZED ( \
                   SELECT position FROM {table} WHERE position > $2::bigint \
                     AND pg_visible_in_snapshot(txid, $1::text::pg_snapshot) \
                   ORDER BY position LIMIT $3::bigint), \
                 reach AS ( \
                   SELECT CASE WHEN count(*) < $3::bigint THEN {END} ELSE max(position) END \
                     AS position FROM page) \
                 {rows}"
            ),
            // Fenced: as the minimum of an index the planner would walk over all that was ever read.
            first: format!(
                "SELECT min(position) FROM ( \
                   SELECT position FROM {table} WHERE txid >= $1::text::xid8 \
                     AND pg_visible_in_snapshot(txid, $2::text::pg_snapshot) OFFSET 0) later"
            ),
            page: page(table, &rows),
            // Only the oldest are looked at, so that it costs the same however many are kept.
            clean_up: format!(
                "DELETE FROM {table} WHERE position IN ( \
                   SELECT position FROM ( \
                     SELECT position, txid, created_at FROM {table} \
                     ORDER BY position LIMIT {CLEAN_UP_ROWS}) oldest \
                   WHERE pg_visible_in_snapshot(txid, $1::text::pg_snapshot) \
                     AND created_at < now() - $2::float8 * interval '1 second')"
            ),
            sample: format!(
                "SELECT {END}, 0::bigint, {COLUMNS} FROM {table} ORDER BY position LIMIT $1"
            ),
            server: format!(
                "SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' \
                     || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), \
                   pg_snapshot_xmax(pg_current_snapshot())::text, \
                   sequence::text, coalesce(pg_sequence_last_value(sequence), 0), \
                   (SELECT seqcache FROM pg_sequence WHERE seqrelid = sequence), \
                   EXISTS (SELECT FROM {table} WHERE txid >= pg_snapshot_xmax(pg_current_snapshot())) \
                 FROM (SELECT pg_get_serial_sequence('{table}', 'position')::regclass AS sequence) s"
            ),
        }
    }
}

/// Two ranges of an index, each from where the last page ended: rows of later transactions by
/// position, from the first one on; and those of each that ran at the base, which may lie
/// far before. So a page costs the same however many rows are behind it or wait after it.
fn page(table: &str, rows: &str) -> String {
    format!(
        "WITH scan AS MATERIALIZED ( \
           SELECT position, txid FROM {table} \
           WHERE position > greatest($4::bigint, $6::bigint - 1) \
           ORDER BY position LIMIT $7::bigint), \
         reach AS ( \
           SELECT CASE WHEN count(*) < $7::bigint THEN {END} ELSE max(position) END \
             AS position FROM scan), \
         ready AS ( \
           SELECT position FROM scan WHERE txid >= $1::text::xid8 \
             AND pg_visible_in_snapshot(txid, $3::text::pg_snapshot) \
           UNION ALL \
           SELECT late.position FROM unnest($2::text[]::xid8[]) AS ran (txid), LATERAL ( \
             SELECT position FROM {table} o \
             WHERE o.txid = ran.txid AND o.position > $4::bigint \
             ORDER BY o.position LIMIT $5::bigint) late \
           WHERE pg_visible_in_snapshot(ran.txid, $3::text::pg_snapshot)), \
         page AS MATERIALIZED ( \
           SELECT position FROM ready WHERE position <= (SELECT position FROM reach) \
           ORDER BY position LIMIT $5::bigint) \
         {rows}"
    )
}

/// Creates the table, or adds what a table of Debezium's shape lacks.
pub(super) fn init(settings: &Settings) -> String {
    let (table, plain) = (&settings.table, settings.plain_name());
    let mut statements = format!(
        "CREATE TABLE IF NOT EXISTS {table} ( \
           id uuid NOT NULL DEFAULT gen_random_uuid(), \
           aggregatetype text NOT NULL, \
           aggregateid text NOT NULL, \
           type text NOT NULL, \
           payload jsonb NOT NULL); \
         ALTER TABLE {table} ADD COLUMN IF NOT EXISTS position bigserial; \
         ALTER TABLE {table} ADD COLUMN IF NOT EXISTS txid xid8 NOT NULL DEFAULT pg_current_xact_id(); \
         ALTER TABLE {table} ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL \
           DEFAULT clock_timestamp(); \
         CREATE UNIQUE INDEX IF NOT EXISTS {plain}_position ON {table} (position); \
         CREATE INDEX IF NOT EXISTS {plain}_txid ON {table} (txid, position);"
    );
    if settings.notify {
        let function = format!("{table}_notify");
        statements.push_str(&format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS \
               $$ BEGIN PERFORM pg_notify('{plain}', ''); RETURN NULL; END $$; \
             DROP TRIGGER IF EXISTS {plain}_notify ON {table}; \
             CREATE TRIGGER {plain}_notify AFTER INSERT ON {table} \
               FOR EACH STATEMENT EXECUTE FUNCTION {function}();"
        ));
    }
    statements
}
