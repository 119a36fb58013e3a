//! The statements, made once for the configured schema. Its name was checked to be a plain one.

use super::rows::COLUMNS;

/// Raised with every change of the tables; [`init`] says what it can do about older ones.
pub(super) const LAYOUT: i32 = 1;

#[derive(Debug)]
pub(super) struct Statements {
    /// Parameters: the columns, subscription, snapshot.
    pub upsert: String,
    /// Rows of a snapshot that changed nothing are part of it as well. Parameters: entities, kinds,
    /// issuers, subscription, snapshot.
    pub mention: String,
    /// Takes the subscription over from whoever had it. Parameter: subscription.
    pub open: String,
    /// Parameters: subscription, session, log, urgent, bulk, applies to add.
    pub set_cursor: String,
    /// Parameters: subscription, session.
    pub hold: String,
    pub begin_snapshot: String,
    /// Parameters: subscription, snapshot.
    pub delete_unmentioned: String,
    pub layout: String,
}

impl Statements {
    pub fn new(schema: &str) -> Statements {
        let names = COLUMNS.map(|(name, ..)| name).join(", ");
        let values = COLUMNS
            .map(|(name, _, cast)| format!("{name}{cast}"))
            .join(", ");
        let lists: Vec<String> = (1..)
            .zip(COLUMNS)
            .map(|(n, (_, t, _))| format!("${n}::{t}"))
            .collect();
        let set = |name: &str| format!("{name} = excluded.{name}");
        // The first three are the key.
        let sets: Vec<String> = COLUMNS[3..].iter().map(|(name, ..)| set(name)).collect();
        let registers = format!("{schema}.hutong_registers");
        let cursor = format!("{schema}.hutong_cursor");
        Statements {
            upsert: format!(
                "INSERT INTO {registers} AS r ({names}, subscription, snapshot_id) \
                 SELECT {values}, $17, $18 FROM unnest({}) AS new({names}) \
                 ON CONFLICT (entity, kind, issuer) DO UPDATE SET {}, {}, {}, applied_at = now() \
                 WHERE r.revision < excluded.revision",
                lists.join(", "),
                sets.join(", "),
                set("subscription"),
                set("snapshot_id"),
            ),
            mention: format!(
                "UPDATE {registers} r SET snapshot_id = $5, subscription = $4 \
                 FROM unnest($1::bytea[], $2::text[], $3::int[]) AS new(entity, kind, issuer) \
                 WHERE r.entity = new.entity AND r.kind = new.kind AND r.issuer = new.issuer \
                   AND (r.snapshot_id <> $5 OR r.subscription <> $4)"
            ),
            open: format!(
                "INSERT INTO {cursor} AS c (subscription) VALUES ($1) \
                 ON CONFLICT (subscription) DO UPDATE SET session = c.session + 1 \
                 RETURNING session, snapshot_id, log_id, urgent, bulk"
            ),
            set_cursor: format!(
                "UPDATE {cursor} SET log_id = $3, urgent = $4, bulk = $5, applied_at = now(), \
                   applies = applies + $6 \
                 WHERE subscription = $1 AND session = $2"
            ),
            hold: format!(
                "SELECT FROM {cursor} WHERE subscription = $1 AND session = $2 FOR UPDATE"
            ),
            begin_snapshot: format!(
                "UPDATE {cursor} SET snapshot_id = 1 + greatest(snapshot_id, \
                   (SELECT max(snapshot_id) FROM {registers} WHERE subscription = $1)) \
                 WHERE subscription = $1 AND session = $2 RETURNING snapshot_id"
            ),
            delete_unmentioned: format!(
                "DELETE FROM {registers} WHERE subscription = $1 AND snapshot_id <> $2"
            ),
            layout: format!("SELECT max(layout) FROM {schema}.hutong_layout"),
        }
    }
}

/// Creates what is not there.
pub(super) fn init(schema: &str) -> String {
    format!(
        "CREATE SCHEMA IF NOT EXISTS {schema}; \
         CREATE TABLE IF NOT EXISTS {schema}.hutong_layout (layout int PRIMARY KEY); \
         CREATE TABLE IF NOT EXISTS {schema}.hutong_registers ( \
           entity bytea NOT NULL, \
           kind text NOT NULL, \
           issuer int NOT NULL, \
           revision bigint NOT NULL, \
           status text, \
           value jsonb NOT NULL, \
           path text[], \
           committed_at timestamptz NOT NULL, \
           expires_at timestamptz, \
           authority text NOT NULL, \
           rule_id text NOT NULL, \
           rule_version bigint NOT NULL, \
           reason text NOT NULL, \
           evidence text NOT NULL, \
           log_offset bigint, \
           durable_at timestamptz, \
           applied_at timestamptz NOT NULL DEFAULT now(), \
           subscription text NOT NULL, \
           snapshot_id bigint NOT NULL, \
           PRIMARY KEY (entity, kind, issuer)); \
         CREATE TABLE IF NOT EXISTS {schema}.hutong_cursor ( \
           subscription text PRIMARY KEY, \
           log_id text, \
           urgent bigint, \
           bulk bigint, \
           applied_at timestamptz, \
           applies bigint NOT NULL DEFAULT 0, \
           snapshot_id bigint NOT NULL DEFAULT 0, \
           session bigint NOT NULL DEFAULT 1); \
         COMMENT ON TABLE {schema}.hutong_registers IS \
           'What other platforms say, newest revision of each register. Written by hutong-connect.'; \
         COMMENT ON TABLE {schema}.hutong_cursor IS \
           'How far each subscription is applied, written together with its rows. Written by hutong-connect.'; \
         INSERT INTO {schema}.hutong_layout VALUES ({LAYOUT}) ON CONFLICT DO NOTHING;"
    )
}
